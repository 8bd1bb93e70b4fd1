"""Checkpoints: from a name to files, and what can be said of them without loading them.

A checkpoint is named by ``embedded`` (the small one inside this package), by a local folder, or by
a hub name ``owner/name[@revision]``. All three have the layout of moshi's own loaders.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece

from pipecat_duplex.engine.vocabulary import Vocabulary
from pipecat_duplex.session import (
    MOSHI_SAMPLING,
    SAMPLE_RATE_HZ,
    STEP_SAMPLES,
    TEXT_PADDING,
    CheckpointError,
    MissingExtra,
    Sampling,
    one_line,
)

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent.parent / "checkpoints" / "embedded"
CODEBOOKS = 8
DIGEST_SAMPLES = 32
DIGEST_BYTES = 64 * 1024
HUB_EXAMPLE = "kyutai/moshiko-pytorch-bf16"
HUB_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[^@]+))?")

FILE_NAMES: dict[str, str | None] = {
    "moshi_name": "model.safetensors",
    "mimi_name": "tokenizer-e351c8d8-checkpoint125.safetensors",
    "tokenizer_name": "tokenizer_spm_32k_3.model",
    "mimi_config_name": None,
    "lora_name": None,
}
"""Keys of ``config.json`` that name files, and what moshi takes where they are missing."""

ELSEWHERE = "hf://"
"""Begins the name of a file that lives in another repository."""


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
        generation = self.config.get("lm_gen_config", {})
        names = {
            "text_temperature": "temp_text",
            "text_top_k": "top_k_text",
            "audio_temperature": "temp",
            "audio_top_k": "top_k",
        }
        given = {ours: generation[name] for ours, name in names.items() if name in generation}
        if not generation.get("use_sampling", True):
            given |= {"text_temperature": 0.0, "audio_temperature": 0.0}
        return MOSHI_SAMPLING._replace(**given)

    @property
    def predicts_user(self) -> bool:
        """Whether it was trained to predict the user's codebooks as well, as PersonaPlex was."""
        return self.config.get("dep_q", CODEBOOKS) > CODEBOOKS

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
        model_id = self.config.get("model_id")
        words_only = isinstance(model_id, dict) and bool(model_id.get("words_only", False))
        return Vocabulary(tokenizer, words_only=words_only)


def find_checkpoint(name: str | Path) -> CheckpointFiles:
    """Find the files of a checkpoint (downloading them if need be) and check what they hold.

    Args:
        name: ``embedded``, a local folder, or ``owner/name[@revision]`` on the hub.

    Raises:
        CheckpointError: It cannot be found, is incomplete, or is not a full-duplex Moshi.
        MissingExtra: It is on the hub, and the hub's client is not installed.
    """
    folder = find_folder(name)
    if folder is not None:
        return _find_local(str(name), folder)
    return _find_on_hub(str(name), *split_hub_name(name))


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


def _find_local(name: str, folder: Path) -> CheckpointFiles:
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(f"checkpoint {folder} is incomplete: it has no config.json")
    config = _read_json(config_path)
    _check_language_config(name, config)

    def locate(file_name: str) -> Path:
        if not file_name.startswith(ELSEWHERE):
            return folder / file_name.removeprefix("file://")
        hub = _import_hub()
        with hub.talking_to_hub(name):
            return hub.download(*_split_elsewhere(file_name))

    files = _locate_all(config, locate)
    missing = [path.name for path in files.values() if not path.is_file()]
    if missing:
        raise CheckpointError(f"checkpoint {folder} is incomplete: no {', '.join(missing)}")
    return _make_files(name, config_path, config, files)


def _find_on_hub(name: str, repo: str, revision: str | None) -> CheckpointFiles:
    hub = _import_hub()

    def locate(file_name: str) -> Path:
        if file_name.startswith(ELSEWHERE):
            return hub.download(*_split_elsewhere(file_name))
        return hub.download(repo, file_name.removeprefix("file://"), revision)

    with hub.talking_to_hub(name):
        # The small file first: a wrong kind of model is refused before gigabytes are fetched.
        config_path = hub.download_if_any(repo, "config.json", revision)
        config: dict[str, Any] = {}
        if config_path is not None:
            config = _read_json(config_path)
            _check_language_config(name, config)
        files = _locate_all(config, locate)
    return _make_files(name, config_path, config, files)


def _import_hub():
    try:
        from pipecat_duplex.engine import hub
    except ModuleNotFoundError as error:
        raise MissingExtra(
            "a checkpoint from the hub needs huggingface_hub, which is not installed: "
            "pip install 'pipecat-duplex[moshi]'"
        ) from error
    return hub


def _split_elsewhere(file_name: str) -> tuple[str, str]:
    """Split ``hf://owner/name/file`` into repository and file."""
    owner, repo, file = file_name.removeprefix(ELSEWHERE).split("/", 2)
    return f"{owner}/{repo}", file


def _locate_all(config: dict[str, Any], locate: Callable[[str], Path]) -> dict[str, Path]:
    named = {key: config.get(key, default) for key, default in FILE_NAMES.items()}
    return {key: locate(file_name) for key, file_name in named.items() if file_name is not None}


def _make_files(
    name: str, config_path: Path | None, config: dict[str, Any], files: dict[str, Path]
) -> CheckpointFiles:
    mimi_config_path = files.get("mimi_config_name")
    if mimi_config_path is not None:
        _check_codec_config(name, _read_json(mimi_config_path))
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return content


def _check_language_config(name: str, config: dict[str, Any]) -> None:
    """Refuse what is not a full-duplex Moshi: recognizers, synthesizers, translators."""
    model_type = config.get("model_type", "moshi")
    agent_codebooks = config.get("dep_q")
    codebooks = config.get("n_q")
    if model_type != "moshi":
        problem = f"its model type is {model_type!r}"
    elif config.get("stt_config") or agent_codebooks == 0:
        problem = "it recognizes speech and does not speak"
    elif config.get("tts_config"):
        problem = "it synthesizes speech and does not listen"
    elif agent_codebooks is None or codebooks is None:
        problem = "its config.json does not describe a Moshi language model"
    elif agent_codebooks not in (CODEBOOKS, 2 * CODEBOOKS) or codebooks != 2 * CODEBOOKS:
        problem = (
            f"it has {agent_codebooks} codebooks for the agent of {codebooks} in all, "
            f"not {CODEBOOKS} of {2 * CODEBOOKS}"
        )
    elif len(config.get("delays", ())) != 2 * CODEBOOKS + 1:
        problem = f"it does not have {2 * CODEBOOKS + 1} streams"
    elif config.get("fuser") or config.get("conditioners"):
        problem = "it wants conditions that a conversation does not have"
    elif config.get("existing_text_padding_id", TEXT_PADDING) != TEXT_PADDING:
        problem = f"its text padding is not token {TEXT_PADDING}"
    else:
        return
    raise CheckpointError(f"checkpoint {name} is not a full-duplex Moshi: {problem}")


def _check_codec_config(name: str, config: dict[str, Any]) -> None:
    sample_rate, frame_rate = config.get("sample_rate"), config.get("frame_rate")
    if sample_rate != SAMPLE_RATE_HZ or frame_rate != SAMPLE_RATE_HZ / STEP_SAMPLES:
        raise CheckpointError(
            f"checkpoint {name} is not a full-duplex Moshi: its codec has {sample_rate} Hz and "
            f"{frame_rate} steps a second, not {SAMPLE_RATE_HZ} and {SAMPLE_RATE_HZ / STEP_SAMPLES}"
        )


def _digest_samples(path: Path, digest: "hashlib._Hash") -> None:
    """Take a file into a digest by its size and by samples: gigabytes would take many seconds."""
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for sample in range(DIGEST_SAMPLES):
            file.seek(sample * max(0, size - DIGEST_BYTES) // (DIGEST_SAMPLES - 1))
            digest.update(file.read(DIGEST_BYTES))
