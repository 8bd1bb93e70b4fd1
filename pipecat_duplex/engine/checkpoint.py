"""Checkpoints: from a name to files, and what can be said of them without loading them.

A checkpoint is named by ``embedded`` (the small one inside this package), by a local folder, or by
a hub name ``owner/name[@revision]``. All three have the layout of moshi's own loaders.
"""

import hashlib
import json
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sentencepiece

from pipecat_duplex.engine.checkpoint_config import (
    CODEBOOKS,
    FILE_NAMES,
    FileName,
    check_codec_config,
    check_language_config,
    check_recognizer_config,
    file_name,
    is_personaplex,
    read_json,
)
from pipecat_duplex.engine.vocabulary import Vocabulary
from pipecat_duplex.session import (
    MOSHI_SAMPLING,
    CheckpointError,
    MissingExtra,
    Sampling,
    one_line,
)
from pipecat_duplex.session.contract import MAX_TOP_K

if TYPE_CHECKING:
    from pipecat_duplex.engine.hub import Hub

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent.parent / "checkpoints" / "embedded"
DIGEST_SAMPLES = 32
DIGEST_BYTES = 64 * 1024
HUB_EXAMPLE = "kyutai/moshiko-pytorch-bf16"
MAX_HEADER_BYTES = 100_000_000
"""Longest header of a safetensors file, as the format says."""

HUB_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[^@]+))?")

GRAPHS = ("encoder", "temporal", "depformer", "decoder")
"""The graphs of a checkpoint for ONNX Runtime, ``NAME.onnx``, in the order of a step."""


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of a checkpoint, all of them there.

    Parameters:
        name: The name it was asked for by.
        lm_weights: The language model.
        mimi_weights: The codec.
        tokenizer: The SentencePiece model.
        config_path: ``config.json``; the first Moshi repositories have none.
        mimi_config_path: The codec's configuration; without one it is the published Mimi.
        lora_weights: Weights to add to the language model.
        config: What ``config.json`` says.
    """

    name: str
    lm_weights: Path
    mimi_weights: Path
    tokenizer: Path
    config_path: Path | None = None
    mimi_config_path: Path | None = None
    lora_weights: Path | None = None
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def trained(self) -> bool:
        """Whether the weights mean something: those that are random say so."""
        model_id = self.config.get("model_id")
        return not isinstance(model_id, dict) or bool(model_id.get("trained", True))

    @property
    def sampling(self) -> Sampling:
        """How the checkpoint recommends to sample: arguments for moshi's ``LMGen``."""
        generation = self.config.get("lm_gen_config") or {}
        names = {
            "text_temperature": "temp_text",
            "text_top_k": "top_k_text",
            "audio_temperature": "temp",
            "audio_top_k": "top_k",
        }
        given = {ours: generation[name] for ours, name in names.items() if name in generation}
        for name in ("text_top_k", "audio_top_k"):
            if given.get(name) == 0:  # moshi's word for all of them
                given[name] = MAX_TOP_K
        if not generation.get("use_sampling", True):
            given |= {"text_temperature": 0.0, "audio_temperature": 0.0}
        return MOSHI_SAMPLING._replace(**given)

    @property
    def is_personaplex(self) -> bool:
        """Whether it is laid out as PersonaPlex is published: its config names no sizes."""
        return is_personaplex(self.config)

    @property
    def predicts_user(self) -> bool:
        """Whether it was trained to predict the user's codebooks as well, as PersonaPlex was."""
        return self.is_personaplex or self.config.get("dep_q", CODEBOOKS) > CODEBOOKS

    @property
    def recognizes(self) -> bool:
        """Whether it writes down speech, and does not speak."""
        return self.config.get("dep_q") == 0

    @property
    def text_tokens(self) -> int:
        """Tokens of the monologue."""
        return int(self.config.get("text_card", 32_000))

    @property
    def audio_tokens(self) -> int:
        """Entries of a codebook."""
        return int(self.config.get("card", 2048))

    def fingerprint(self) -> str:
        """Return what tells this checkpoint from others: a digest of samples of its files."""
        digest = hashlib.sha256()
        for path in (self.lm_weights, self.mimi_weights, self.tokenizer, self.lora_weights):
            if path is not None:
                _digest_samples(path, digest)
        return digest.hexdigest()[:32]

    def vocabulary(self) -> Vocabulary:
        """Read what the monologue is made of.

        Raises:
            CheckpointError: The tokenizer cannot be read.
        """
        try:
            tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(self.tokenizer))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint {self.name} cannot be loaded: {one_line(error)}"
            ) from error
        if tokenizer.vocab_size() > self.text_tokens:
            raise CheckpointError(
                f"checkpoint {self.name} cannot be loaded: its tokenizer has "
                f"{tokenizer.vocab_size()} tokens, and its monologue {self.text_tokens}"
            )
        model_id = self.config.get("model_id")
        words_only = isinstance(model_id, dict) and bool(model_id.get("words_only", False))
        return Vocabulary(tokenizer, words_only=words_only)


CheckConfig = Callable[[str, dict[str, Any]], None]
"""Raises if a checkpoint, by its name and its ``config.json``, is of another kind."""


def find_checkpoint(
    name: str | Path, check: CheckConfig = check_language_config
) -> CheckpointFiles:
    """Find the files of a checkpoint (downloading them if need be) and check what they hold.

    Args:
        name: ``embedded``, a local folder, or ``owner/name[@revision]`` on the hub.
        check: What kind it has to be of: a full-duplex Moshi, if nothing else is said.

    Raises:
        CheckpointError: It cannot be found, is incomplete, or is of another kind.
        MissingExtra: It is on the hub, and the hub's client is not installed.
    """
    folder = find_folder(name)
    if folder is not None:
        return _find_local(str(name), folder, check)
    return _find_on_hub(str(name), *split_hub_name(name), check)


def find_recognizer(name: str | Path) -> CheckpointFiles:
    """Find the files of a recogniser, as :func:`find_checkpoint` does.

    Args:
        name: A local folder, or ``owner/name[@revision]`` on the hub.

    Raises:
        CheckpointError: It cannot be found, is incomplete, or does not recognise speech.
        MissingExtra: It is on the hub, and the hub's client is not installed.
    """
    return find_checkpoint(name, check_recognizer_config)


def split_hub_name(name: str | Path) -> tuple[str, str | None]:
    """Split ``owner/name[@revision]`` into repository and revision.

    Raises:
        CheckpointError: It is no such name.
    """
    match = HUB_NAME.fullmatch(str(name))
    if match is None or isinstance(name, Path):
        raise CheckpointError(
            f"there is no checkpoint {name}: it is no folder, and no name on the hub "
            f"(owner/name, such as {HUB_EXAMPLE})"
        )
    return match["repo"], match["revision"]


def find_folder(name: str | Path) -> Path | None:
    """Find the folder of a checkpoint that is on this machine; None if there is no such folder.

    Args:
        name: ``embedded``, a local folder, or a name on the hub.

    Raises:
        CheckpointError: ``embedded`` is not part of this installation.
    """
    if str(name) != EMBEDDED:
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    if not (EMBEDDED_FOLDER / "config.json").is_file():
        raise CheckpointError(
            "the checkpoint 'embedded' is not part of this installation: install a released "
            f"pipecat-duplex, or name a folder or a hub checkpoint such as {HUB_EXAMPLE}"
        )
    return EMBEDDED_FOLDER


def has_graphs(folder: Path) -> bool:
    """Whether a checkpoint folder brings graphs for ONNX Runtime."""
    return all((folder / f"{name}.onnx").is_file() for name in GRAPHS)


def _find_local(name: str, folder: Path, check: CheckConfig) -> CheckpointFiles:
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(f"checkpoint {folder} is incomplete: it has no config.json")
    config = read_json(config_path)
    check(name, config)

    def locate(file: FileName) -> Path:
        if file.repo is None:
            return folder / file.path
        hub = _hub_for(name)
        with hub.readable_errors():
            return hub.download(file.repo, file.path)

    files = _locate_all(name, config, locate)
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise CheckpointError(f"checkpoint {folder} is incomplete: no {', '.join(missing)}")
    return _make_files(name, config_path, config, files)


def _find_on_hub(name: str, repo: str, revision: str | None, check: CheckConfig) -> CheckpointFiles:
    hub = _hub_for(name)

    def locate(file: FileName) -> Path:
        if file.repo is not None:
            return hub.download(file.repo, file.path)
        return hub.download(repo, file.path, revision)

    with hub.readable_errors():
        # The small file first: a wrong kind of model is refused before gigabytes are fetched.
        config_path = hub.download_if_any(repo, "config.json", revision)
        config: dict[str, Any] = {}
        if config_path is None and check is not check_language_config:
            raise CheckpointError(f"checkpoint {name} has no config.json")
        if config_path is not None:
            config = read_json(config_path)
            check(name, config)
        named = (file_name(name, key, config) for key in FILE_NAMES)
        hub.announce(repo, [file.path for file in named if file and not file.repo], revision)
        files = _locate_all(name, config, locate)
    return _make_files(name, config_path, config, files)


def _hub_for(name: str) -> "Hub":
    try:
        from pipecat_duplex.engine.hub import Hub
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "a checkpoint from the hub needs huggingface_hub, which is not installed: "
            "pip install 'pipecat-duplex[moshi]'"
        ) from error
    return Hub(name)


def _locate_all(
    name: str, config: dict[str, Any], locate: Callable[[FileName], Path]
) -> dict[str, Path]:
    named = {key: file_name(name, key, config) for key in FILE_NAMES}
    return {key: locate(file) for key, file in named.items() if file is not None}


def _make_files(
    name: str, config_path: Path | None, config: dict[str, Any], files: dict[str, Path]
) -> CheckpointFiles:
    mimi_config_path = files.get("mimi_config_name")
    if mimi_config_path is not None:
        check_codec_config(name, read_json(mimi_config_path))
    return CheckpointFiles(
        name=name,
        lm_weights=files["moshi_name"],
        mimi_weights=files["mimi_name"],
        tokenizer=files["tokenizer_name"],
        config_path=config_path,
        mimi_config_path=mimi_config_path,
        lora_weights=files.get("lora_name"),
        config=config,
    )


def read_header(weights: Path) -> bytes:
    """Read the header of a safetensors file: what each tensor is called, and where it lies.

    Raises:
        CheckpointError: The file is not one.
    """
    try:
        with weights.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(MAX_HEADER_BYTES, weights.stat().st_size - 8):
                raise CheckpointError(f"{weights} is no safetensors file: it ends in its header")
            return file.read(length)
    except OSError as error:
        raise CheckpointError(f"{weights} cannot be read: {one_line(error)}") from error


def count_parameters(weights: Path) -> int:
    """Count the numbers in a safetensors file.

    Raises:
        CheckpointError: The file is not one.
    """
    try:
        entries = json.loads(read_header(weights))
        shapes = [entry["shape"] for name, entry in entries.items() if name != "__metadata__"]
        return sum(math.prod(map(operator.index, shape)) for shape in shapes)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{weights} is no safetensors file: {one_line(error)}") from error


def _digest_samples(path: Path, digest: "hashlib._Hash") -> None:
    """Take a file into a digest by its size and by samples: gigabytes would take many seconds."""
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for sample in range(DIGEST_SAMPLES):
            file.seek(sample * max(0, size - DIGEST_BYTES) // (DIGEST_SAMPLES - 1))
            digest.update(file.read(DIGEST_BYTES))
