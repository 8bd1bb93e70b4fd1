"""Checkpoints: from a name to a model in memory.

A checkpoint is named by ``embedded`` (the small one inside this package), by a local folder, or by
a hub name ``owner/name[@revision]``. All three are read by moshi's own loaders.
"""

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import sentencepiece
import torch
from huggingface_hub import constants as hub_constants
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import reset_sessions  # pyright: ignore[reportPrivateImportUsage]
from moshi.models import loaders
from moshi.models.compression import MimiModel
from moshi.models.lm import LMModel
from moshi.modules.transformer import StreamingMultiheadAttention

from pipecat_duplex.session import (
    MOSHI_SAMPLING,
    SAMPLE_RATE_HZ,
    STEP_SAMPLES,
    TEXT_END_OF_PADDING,
    TEXT_PADDING,
    CheckpointError,
    Sampling,
)

EMBEDDED = "embedded"
EMBEDDED_FOLDER = Path(__file__).parent.parent / "checkpoints" / "embedded"
CODEBOOKS = 8
HUB_TIMEOUT_SECS = 4.0
HUB_NAME = re.compile(r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[^@]+))?")


@dataclass(frozen=True, slots=True)
class CheckpointSummary:
    """What was loaded, for logs and for a person.

    Parameters:
        name: The name it was asked for by.
        trained: False if the weights are random, so that the agent babbles.
        lm_parameters: Parameters of the language model.
        mimi_parameters: Parameters of the codec.
        context_steps: Steps that the language model can look back on.
        device: Where it runs, in torch's words.
        dtype: Number format of the language model; the codec is always float32.
        kv_bytes_per_slot: Attention memory of one conversation.
        sampling: How it recommends to sample.
    """

    name: str
    trained: bool
    lm_parameters: int
    mimi_parameters: int
    context_steps: int
    device: str
    dtype: str
    kv_bytes_per_slot: int
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint.

    Parameters:
        lm: The language model.
        mimi: The codec, with as many codebooks as the language model speaks.
        pieces: SentencePiece piece of each text token; None for padding and control tokens.
        summary: What it is.
    """

    lm: LMModel
    mimi: MimiModel
    pieces: list[str | None]
    summary: CheckpointSummary


def load_checkpoint(name: str | Path, device: str | None = None) -> Checkpoint:
    """Load a checkpoint into memory.

    Args:
        name: ``embedded``, a local folder, or ``owner/name[@revision]`` on the hub.
        device: Where to, in torch's words. None is CUDA if there is a GPU, else the CPU. CUDA runs
            the language model in bfloat16, the CPU in float32.

    Raises:
        CheckpointError: It cannot be found, is incomplete, is not a full-duplex Moshi, or does not
            fit into memory.
    """
    target = _choose_device(device)
    dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
    info = find_checkpoint(name)
    try:
        mimi = info.get_mimi(target)
        lm = info.get_moshi(target, dtype=dtype)
        tokenizer = info.get_text_tokenizer()
    except torch.OutOfMemoryError as error:
        raise CheckpointError(
            f"checkpoint {name} does not fit into the memory of {target}: "
            "choose a smaller checkpoint or another device"
        ) from error
    except Exception as error:  # torch, safetensors and moshi's asserts: all mean bad files
        raise CheckpointError(f"checkpoint {name} cannot be loaded: {_one_line(error)}") from error
    if mimi.frame_size != STEP_SAMPLES or mimi.sample_rate != SAMPLE_RATE_HZ:
        raise CheckpointError(
            f"checkpoint {name} is not a full-duplex Moshi: its codec does not have "
            f"steps of {STEP_SAMPLES} samples at {SAMPLE_RATE_HZ} Hz"
        )
    summary = CheckpointSummary(
        name=str(name),
        trained=_is_trained(info.model_id),
        lm_parameters=_count_parameters(lm),
        mimi_parameters=_count_parameters(mimi),
        context_steps=lm.context or 0,
        device=str(target),
        dtype=str(dtype).removeprefix("torch."),
        kv_bytes_per_slot=_kv_bytes(lm.transformer, dtype) + _kv_bytes(mimi, torch.float32),
        sampling=_read_sampling(info.lm_gen_config),
    )
    return Checkpoint(lm, mimi, _text_pieces(tokenizer), summary)


def find_checkpoint(name: str | Path) -> loaders.CheckpointInfo:
    """Find the files of a checkpoint (downloading them if need be) and check what they hold.

    Args:
        name: ``embedded``, a local folder, or ``owner/name[@revision]`` on the hub.

    Raises:
        CheckpointError: It cannot be found, is incomplete, or is not a full-duplex Moshi.
    """
    if str(name) == EMBEDDED:
        if not (EMBEDDED_FOLDER / "config.json").is_file():
            raise CheckpointError(
                "the checkpoint 'embedded' is not part of this installation: install a released "
                "pipecat-duplex, or name a folder or a hub checkpoint such as "
                f"{loaders.DEFAULT_REPO}"
            )
        return _find_local(EMBEDDED_FOLDER)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _find_local(folder)
    match = HUB_NAME.fullmatch(str(name))
    if match is None or isinstance(name, Path):
        raise CheckpointError(
            f"there is no checkpoint {name}: it is no folder, and no name on the hub "
            f"(owner/name, such as {loaders.DEFAULT_REPO})"
        )
    return _find_on_hub(str(name), match["repo"], match["revision"])


def _find_local(folder: Path) -> loaders.CheckpointInfo:
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError(f"checkpoint {folder} is incomplete: it has no config.json")
    config = _read_json(config_path)
    _check_language_config(str(folder), config)

    def locate(key: str, default: str | None) -> Path | str | None:
        file_name = config.get(key, default)
        if file_name is None or file_name.startswith("hf://"):
            return file_name  # moshi fetches a file that lives in another repository
        return folder / file_name.removeprefix("file://")

    files: dict[str, Any] = {
        "moshi_weights": locate("moshi_name", loaders.MOSHI_NAME),
        "mimi_weights": locate("mimi_name", loaders.MIMI_NAME),
        "tokenizer": locate("tokenizer_name", loaders.TEXT_TOKENIZER_NAME),
        "mimi_config_path": locate("mimi_config_name", None),
        "lora_weights": locate("lora_name", None),
    }
    missing = [f.name for f in files.values() if isinstance(f, Path) and not f.is_file()]
    if missing:
        raise CheckpointError(f"checkpoint {folder} is incomplete: no {', '.join(missing)}")
    mimi_config_path = files["mimi_config_path"]
    if isinstance(mimi_config_path, Path):
        _check_codec_config(str(folder), _read_json(mimi_config_path))
    return loaders.CheckpointInfo.from_hf_repo(str(folder), config_path=config_path, **files)


def _find_on_hub(name: str, repo: str, revision: str | None) -> loaders.CheckpointInfo:
    with nullcontext() if _hub_answers() else _hub_offline():
        return _fetch_from_hub(name, repo, revision)


def _hub_answers() -> bool:
    """Whether the hub can be reached; where a proxy is set, only the hub's client can tell."""
    if getproxies():
        return True
    hub = urlsplit(hub_constants.ENDPOINT)
    port = hub.port or {"http": 80}.get(hub.scheme, 443)
    try:
        socket.create_connection((hub.hostname or "", port), HUB_TIMEOUT_SECS).close()
    except OSError:
        return False
    return True


@contextmanager
def _hub_offline() -> Iterator[None]:
    """Let the hub's client look into its cache only: its own retries take half a minute a file."""
    before, hub_constants.HF_HUB_OFFLINE = hub_constants.HF_HUB_OFFLINE, True
    reset_sessions()
    try:
        yield
    finally:
        hub_constants.HF_HUB_OFFLINE = before
        reset_sessions()


def _fetch_from_hub(name: str, repo: str, revision: str | None) -> loaders.CheckpointInfo:
    try:
        # The small file first: a wrong kind of model is refused before gigabytes are fetched.
        try:
            config_path = Path(hf_hub_download(repo, "config.json", revision=revision))
            _check_language_config(name, _read_json(config_path))
        except hub_errors.LocalEntryNotFoundError:
            raise
        except hub_errors.EntryNotFoundError:
            config_path = None  # the first Moshi repositories have none; moshi knows those
        info = loaders.CheckpointInfo.from_hf_repo(repo, config_path=config_path, revision=revision)
    except CheckpointError:
        raise
    except Exception as error:  # the hub client lets errors of its HTTP library through
        raise CheckpointError(f"checkpoint {name}: {_explain_hub_error(error)}") from error
    if info.mimi_config is not None:
        _check_codec_config(name, info.mimi_config)
    return info


def _explain_hub_error(error: Exception) -> str:
    match error:
        case hub_errors.GatedRepoError():
            return "access is gated: accept its terms on the hub, then run 'hf auth login'"
        case hub_errors.RevisionNotFoundError():
            return "the hub has no such revision"
        case hub_errors.RepositoryNotFoundError():
            return "the hub has no such repository, or it is private: then run 'hf auth login'"
        case hub_errors.LocalEntryNotFoundError() | hub_errors.OfflineModeIsEnabled():
            return (
                "the hub cannot be reached and the files are not in the cache: "
                "connect once, or name a local folder or 'embedded'"
            )
        case hub_errors.EntryNotFoundError():
            return f"it is incomplete: {_one_line(error)}"
        case _:
            return f"the hub gave an error: {_one_line(error)}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {_one_line(error)}") from error
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
    elif agent_codebooks != CODEBOOKS or codebooks != 2 * CODEBOOKS:
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


def _choose_device(device: str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise CheckpointError(f"there is no device {device!r}: try 'cpu' or 'cuda'") from error
    if target.type not in ("cpu", "cuda"):
        raise CheckpointError(f"device {device!r} is not supported: use 'cpu' or 'cuda'")
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise CheckpointError(f"device {device!r} was asked for, but torch finds no such GPU")
    return target


def _text_pieces(tokenizer: sentencepiece.SentencePieceProcessor) -> list[str | None]:
    silent = {TEXT_PADDING, TEXT_END_OF_PADDING}
    return [
        None if token in silent or tokenizer.is_control(token) else tokenizer.id_to_piece(token)
        for token in range(tokenizer.vocab_size())
    ]


def _read_sampling(generation: dict[str, Any]) -> Sampling:
    """Read a checkpoint's ``lm_gen_config``: arguments for moshi's ``LMGen``."""
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


def _is_trained(model_id: Any) -> bool:
    """Whether the weights mean something: checkpoints of random weights say that they do not."""
    return not isinstance(model_id, dict) or bool(model_id.get("trained", True))


def _count_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _kv_bytes(module: torch.nn.Module, dtype: torch.dtype) -> int:
    """Size of one slot's ring of keys and values, over all attentions in the module."""
    attentions = [m for m in module.modules() if isinstance(m, StreamingMultiheadAttention)]
    return sum(
        2 * (attention.context or 0) * (attention.embed_dim // attention.kv_repeat) * dtype.itemsize
        for attention in attentions
    )


def _one_line(error: Exception) -> str:
    """The first line of an error that says something, or its type."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
