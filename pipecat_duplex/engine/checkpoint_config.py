"""What a checkpoint's ``config.json`` may say: it comes from anybody, and is checked before use."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pipecat_duplex.session import (
    SAMPLE_RATE_HZ,
    STEP_SAMPLES,
    TEXT_PADDING,
    CheckpointError,
    one_line,
)
from pipecat_duplex.session.contract import MAX_TOP_K

CODEBOOKS = 8
STREAMS = 1 + 2 * CODEBOOKS

FILE_NAMES: dict[str, str | None] = {
    "moshi_name": "model.safetensors",
    "mimi_name": "tokenizer-e351c8d8-checkpoint125.safetensors",
    "tokenizer_name": "tokenizer_spm_32k_3.model",
    "mimi_config_name": None,
    "lora_name": None,
}
"""Keys of ``config.json`` that name files, and what moshi takes where they are missing."""

WEIGHTS = ("moshi_name", "mimi_name", "lora_name")
"""Those that name weights. Other formats than safetensors can hold programs, and run them."""

ELSEWHERE = "hf://"
"""Begins the name of a file that lives in another repository."""

MAX_CODEBOOKS = 64
MAX_RECOGNIZER_SECS = 10
MAX_CONFIG_BYTES = 1024 * 1024
MAX_DELAY_STEPS = 64
MAX_LAYERS = 512
MAX_NUMBER = 10_000_000
MAX_DEPTH = 8
MAX_ITEMS = 4096


class FileName(NamedTuple):
    """The name of a file, as ``config.json`` has it.

    Parameters:
        path: Relative to the checkpoint's folder or repository; never out of it.
        repo: The other repository that it lives in, or ``None``.
    """

    path: str
    repo: str | None = None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object whose size, depth and numbers are those of a configuration.

    Raises:
        CheckpointError: It cannot be read, or holds anything else.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    _check_values(path, "", content, depth=0)
    return content


def is_personaplex(config: Mapping[str, Any]) -> bool:
    """Whether a configuration is PersonaPlex's, which has a model type and no sizes: Moshi's."""
    return config.get("model_type") == "personaplex" and "dep_q" not in config


def check_language_config(name: str, config: Mapping[str, Any]) -> None:
    """Check that a language model's configuration is that of a full-duplex Moshi.

    Args:
        name: The checkpoint, for errors.
        config: What its ``config.json`` says.

    Raises:
        CheckpointError: It describes another kind of model, such as a recognizer, or a value has
            the wrong type or is out of range.
    """
    problem = _find_other_kind(config)
    if problem is not None:
        raise CheckpointError(f"checkpoint {name} is not a full-duplex Moshi: {problem}")
    for key, is_right, wanted in _RULES:
        if key in config and not is_right(config[key]):
            raise _wrong(name, key, config[key], wanted)
    for key, is_right, wanted in _SAMPLING_RULES:
        generation = config.get("lm_gen_config") or {}
        if key in generation and not is_right(generation[key]):
            raise _wrong(name, f"lm_gen_config.{key}", generation[key], wanted)
    for key in FILE_NAMES:
        file_name(name, key, config)


def check_recognizer_config(name: str, config: Mapping[str, Any]) -> None:
    """Check that a language model's configuration is that of a recogniser of Kyutai's.

    Args:
        name: The checkpoint, for errors.
        config: What its ``config.json`` says.

    Raises:
        CheckpointError: It describes another kind of model, or a value has the wrong type or is out
            of range.
    """
    problem = _find_no_recognizer(config)
    if problem is not None:
        raise CheckpointError(
            f"checkpoint {name} does not recognise speech: {problem}. A recogniser is, for "
            "example, kyutai/stt-1b-en_fr"
        )
    for key, is_right, wanted in _RULES:
        is_depth = key == "dep_q" or key.startswith("depformer")
        if key in config and not is_depth and not is_right(config[key]):
            raise _wrong(name, key, config[key], wanted)
    for key in ("audio_delay_seconds", "audio_silence_prefix_seconds"):
        secs = config["stt_config"].get(key, 0.0)
        if not _is_number(secs) or not 0 <= secs <= MAX_RECOGNIZER_SECS:
            wanted = f"a number from 0 to {MAX_RECOGNIZER_SECS}"
            raise _wrong(name, f"stt_config.{key}", secs, wanted)
    for key in FILE_NAMES:
        file_name(name, key, config)


def check_codec_config(name: str, config: Mapping[str, Any]) -> None:
    """Check that a codec's configuration is that of Mimi.

    Raises:
        CheckpointError: It has another rate, or parts of the wrong type.
    """
    sample_rate, frame_rate = config.get("sample_rate"), config.get("frame_rate")
    if sample_rate != SAMPLE_RATE_HZ or frame_rate != SAMPLE_RATE_HZ / STEP_SAMPLES:
        raise CheckpointError(
            f"checkpoint {name} is not a full-duplex Moshi: its codec has {sample_rate} Hz and "
            f"{frame_rate} steps a second, not {SAMPLE_RATE_HZ} and {SAMPLE_RATE_HZ / STEP_SAMPLES}"
        )
    for key in ("seanet", "transformer", "quantizer"):
        if key in config and not isinstance(config[key], dict):
            raise _wrong(name, f"the codec's {key}", config[key], "an object")


def file_name(name: str, key: str, config: Mapping[str, Any]) -> FileName | None:
    """Return the file that a key of ``config.json`` names; ``None`` if it names none.

    Raises:
        CheckpointError: It is no name of a file within the checkpoint, or weights are in a format
            other than safetensors.
    """
    default = FILE_NAMES[key]
    value = config.get(key, default)
    if value is None and default is None:
        return None
    if not isinstance(value, str) or not value:
        raise _wrong(name, key, value, "the name of a file")
    path, repo = value.removeprefix("file://"), None
    if value.startswith(ELSEWHERE):
        owner, _, rest = value.removeprefix(ELSEWHERE).partition("/")
        repo_name, _, path = rest.partition("/")
        repo = f"{owner}/{repo_name}"
        if not owner or not repo_name or not path:
            raise _wrong(name, key, value, f"{ELSEWHERE}owner/name/file")
    parts = PurePosixPath(path).parts
    outside = path.startswith(("/", "~")) or ".." in parts or "\\" in path or ":" in path
    if outside or not parts or not path.isprintable():
        raise CheckpointError(
            f"checkpoint {name}: {key} in config.json names {value[:200]!r}, which is not a file "
            "within the checkpoint"
        )
    if key in WEIGHTS and not path.endswith(".safetensors"):
        raise CheckpointError(
            f"checkpoint {name}: {key} in config.json names {value[:200]!r}: weights are taken as "
            "safetensors only, since other formats can hold programs"
        )
    return FileName(path, repo)


def _find_other_kind(config: Mapping[str, Any]) -> str | None:
    """Return what shows that a model is not a full-duplex Moshi, or ``None``."""
    if is_personaplex(config):
        return None
    model_type = config.get("model_type", "moshi")
    agent_codebooks = config.get("dep_q")
    codebooks = config.get("n_q")
    delays = config.get("delays")
    if model_type != "moshi":
        return f"its model type is {model_type!r}"
    if config.get("stt_config") or agent_codebooks == 0:
        return "it recognizes speech and does not speak"
    if config.get("tts_config"):
        return "it synthesizes speech and does not listen"
    if agent_codebooks is None or codebooks is None:
        return "its config.json does not describe a Moshi language model"
    if agent_codebooks not in (CODEBOOKS, 2 * CODEBOOKS) or codebooks != 2 * CODEBOOKS:
        return (
            f"it has {agent_codebooks} codebooks for the agent of {codebooks} in all, "
            f"not {CODEBOOKS} of {2 * CODEBOOKS}"
        )
    if not isinstance(delays, list) or len(delays) != STREAMS:
        return f"it does not have {STREAMS} streams"
    if config.get("fuser") or config.get("conditioners"):
        named = ", ".join(_conditions(config)) or "unnamed"
        return f"it wants conditions that a conversation does not have ({named})"
    if config.get("existing_text_padding_id", TEXT_PADDING) != TEXT_PADDING:
        return f"its text padding is not token {TEXT_PADDING}"
    return None


def _find_no_recognizer(config: Mapping[str, Any]) -> str | None:
    """Return what shows that a model is no recogniser, or ``None``."""
    codebooks, delays = config.get("n_q"), config.get("delays")
    if config.get("dep_q", CODEBOOKS) != 0 or not isinstance(config.get("stt_config"), dict):
        return f"its model type is {config.get('model_type', 'moshi')!r}, and it speaks"
    if not isinstance(codebooks, int) or not 1 <= codebooks <= MAX_CODEBOOKS:
        return f"it hears {codebooks!r} codebooks"
    if not isinstance(delays, list) or len(delays) != 1 + codebooks:
        return f"it does not have {1 + codebooks} streams"
    conditions = _conditions(config)
    if conditions:
        return f"it wants conditions that a conversation does not have ({', '.join(conditions)})"
    if config.get("existing_text_padding_id", TEXT_PADDING) != TEXT_PADDING:
        return f"its text padding is not token {TEXT_PADDING}"
    return None


def _conditions(config: Mapping[str, Any]) -> list[str]:
    """Name the conditions of a model, and how they come in."""
    fuser, conditioners = config.get("fuser"), config.get("conditioners")
    ways = fuser.items() if isinstance(fuser, dict) else ()
    names = list(conditioners) if isinstance(conditioners, dict) else []
    # Among the ways are settings of theirs.
    return [*(way for way, used in ways if isinstance(used, list) and used), *map(str, names)]


def _check_values(path: Path, key: str, value: object, depth: int) -> None:
    """Check every number, text and list, however deep: none may be of a size that does harm."""
    if depth > MAX_DEPTH:
        raise CheckpointError(f"{path} is nested too deep, at {key!r}")
    if isinstance(value, dict | list):
        if len(value) > MAX_ITEMS:
            raise CheckpointError(f"{path} holds {len(value)} values at {key!r}")
        items = value.items() if isinstance(value, dict) else ((key, item) for item in value)
        for name, item in items:
            _check_values(path, str(name), item, depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        most = (
            MAX_LAYERS
            if key.endswith("num_layers") or key.endswith("n_residual_layers")
            else MAX_NUMBER
        )
        if not math.isfinite(value) or abs(value) > most:
            raise CheckpointError(f"{path}: {key} is {str(value)[:40]}, which is out of range")


def _wrong(name: str, key: str, value: object, wanted: str) -> CheckpointError:
    found = str(value)[:60] if isinstance(value, int | float) else repr(value)[:60]
    return CheckpointError(f"checkpoint {name}: {key} in config.json is {found}, not {wanted}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: object) -> bool:
    return _is_whole(value) and value > 0  # pyright: ignore[reportOperatorIssue]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _between(lowest: float, highest: float, *, whole: bool) -> Callable[[Any], bool]:
    is_kind = _is_whole if whole else _is_number
    return lambda value: is_kind(value) and lowest <= value <= highest


def _is_delays(value: list) -> bool:
    return all(map(_between(0, MAX_DELAY_STEPS, whole=True), value))


def _is_object(value: object) -> bool:
    return value is None or isinstance(value, dict)


_SIZES = (
    "dim card text_card context num_heads num_layers depformer_dim depformer_num_heads "
    "depformer_num_layers depformer_dim_feedforward"
).split()

_RULES: list[tuple[str, Callable[[Any], bool], str]] = [
    *((key, _is_positive, "a whole number above 0") for key in _SIZES),
    ("n_q", _is_positive, "a whole number above 0"),
    ("dep_q", _is_positive, "a whole number above 0"),
    ("delays", _is_delays, f"a list of whole numbers from 0 to {MAX_DELAY_STEPS}"),
    ("hidden_scale", _between(1e-3, 1000, whole=False), "a number above 0"),
    ("max_period", _between(1, MAX_NUMBER, whole=False), "a number above 0"),
    ("lm_gen_config", _is_object, "an object"),
]
"""Keys of ``config.json``, what their values must be, and how that is said."""

_TEMPERATURE = (_between(0, 10, whole=False), "a number from 0 to 10")
_TOP_K = (_between(0, MAX_TOP_K, whole=True), f"a whole number from 0 to {MAX_TOP_K}")

_SAMPLING_RULES: list[tuple[str, Callable[[Any], bool], str]] = [
    ("temp", *_TEMPERATURE),
    ("temp_text", *_TEMPERATURE),
    ("top_k", *_TOP_K),
    ("top_k_text", *_TOP_K),
    ("use_sampling", lambda value: isinstance(value, bool), "true or false"),
]
