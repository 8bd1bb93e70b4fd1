"""What a caller asks for in the query of the URL."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from pipecat_duplex.protocol.messages import WireError
from pipecat_duplex.session import STEP_SECS, SessionConfig

MOST_USED = "Duplex-Most-Used"
"""A header: a server with more calls than this is to refuse, since its caller was told of so many
and would go elsewhere now."""

FULLER = "fuller"
"""The reason of that refusal."""

MAX_SEED = 2**64 - 1
"""The Rust backend's seeds are of 64 bits."""

AudioFormat = Literal["opus", "pcm"]
"""How audio travels: Ogg-Opus, as everywhere, or raw steps."""


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """What a caller asks for in the query of the URL.

    Parameters:
        config: The session's settings.
        audio_format: How audio is to travel.
        ignored: Names of parameters that make no difference here.
        tokens: Whether the caller wants the tokens of each step.
        moves: Whether it goes elsewhere by itself when the server shuts down.
    """

    config: SessionConfig
    audio_format: AudioFormat = "opus"
    ignored: list[str] = field(default_factory=list)
    tokens: bool = False
    moves: bool = False


_CONFIG_NAMES = {
    "text_temperature": "text_temperature",
    "text_topk": "text_top_k",
    "audio_temperature": "audio_temperature",
    "audio_topk": "audio_top_k",
    "text_prompt": "text_prompt",
    "voice_prompt": "voice_prompt",
}
"""The names of the Rust backend and of PersonaPlex, and ours."""

# Not part of the session, so no reason to call them ignored.
_ACCESS_NAMES = {"api_key", "worker_auth_id"}


def build_query(
    config: SessionConfig, audio_format: AudioFormat = "opus", *, moves: bool = False
) -> dict[str, str]:
    """Return the query parameters that ask for a session, in the Rust backend's names.

    ``seed`` is not one of them: it breaks PersonaPlex's server.

    Args:
        config: The session's settings.
        audio_format: How audio is to travel, if the server can. With ``pcm``, tokens are asked for
            as well.
        moves: Whether the caller goes elsewhere by itself when the server shuts down.
    """
    asked = {name: getattr(config, ours) for name, ours in _CONFIG_NAMES.items()}
    query = {name: str(value) for name, value in asked.items() if value is not None}
    if config.seed is not None:
        query["text_seed"] = query["audio_seed"] = str(config.seed)
    if config.max_secs is not None:
        query["max_steps"] = str(max(1, math.ceil(config.max_secs / STEP_SECS - 1e-6)))
    if audio_format != "opus":
        query["format"] = audio_format
        query["tokens"] = "move" if moves else "1"
    if config.restores:
        query["restores"] = "1"
    return query


def parse_query(query: Mapping[str, str]) -> SessionRequest:
    """Read the query parameters of a caller.

    Args:
        query: Names and values; of several equal names, one.

    Raises:
        WireError: A value cannot be read or is out of range.
    """
    fields: dict[str, Any] = {
        ours: query[name] for name, ours in _CONFIG_NAMES.items() if query.get(name)
    }
    seeds = [_parse_int(query, name, MAX_SEED) for name in ("text_seed", "audio_seed")]
    if seeds == [None, None] and query.get("seed") != "-1":  # PersonaPlex's name; -1 is any.
        seeds[0] = _parse_int(query, "seed", MAX_SEED)
    fields["seed"] = _one_seed(*seeds)
    max_steps = _parse_int(query, "max_steps", 2**31)
    if max_steps is not None:
        fields["max_secs"] = max_steps * STEP_SECS
    audio_format = query.get("format") or "opus"
    if audio_format not in ("opus", "pcm"):
        raise WireError(f"format={audio_format!r}: there are 'opus' and 'pcm'")
    tokens = query.get("tokens") or "0"
    if tokens not in ("0", "1", "move"):
        raise WireError(f"tokens={tokens[:40]!r}: there are '0', '1' and 'move'")
    restores = query.get("restores") or "0"
    if restores not in ("0", "1"):
        raise WireError(f"restores={restores[:40]!r}: there are '0' and '1'")
    fields["restores"] = restores == "1"
    others = {"text_seed", "audio_seed", "seed", "max_steps", "format", "tokens", "restores"}
    known = {*_CONFIG_NAMES, *_ACCESS_NAMES, *others}
    try:
        config = SessionConfig(**fields)
    except ValidationError as e:
        raise WireError(_explain(e)) from e
    return SessionRequest(
        config, audio_format, sorted(set(query) - known), tokens != "0", tokens == "move"
    )


def _parse_int(query: Mapping[str, str], name: str, highest: int) -> int | None:
    value = query.get(name)
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 20 and int(value) <= highest):
        raise WireError(f"{name}={value[:40]!r}: not a whole number from 0 to {highest}")
    return int(value)


def _one_seed(text_seed: int | None, audio_seed: int | None) -> int | None:
    """A session has one seed: the same two numbers make the same one."""
    if text_seed is None or audio_seed is None or text_seed == audio_seed:
        seed = text_seed if audio_seed is None else audio_seed
    else:
        seed = text_seed * 0x9E3779B97F4A7C15 + audio_seed
    return None if seed is None else seed % 2**63


def _explain(error: ValidationError) -> str:
    names = {ours: name for name, ours in _CONFIG_NAMES.items()} | {"max_secs": "max_steps"}
    problems = []
    for detail in error.errors():
        name = str(detail["loc"][0]) if detail["loc"] else ""
        problems.append(f"{names.get(name, name)}={str(detail['input'])[:40]!r}: {detail['msg']}")
    return "; ".join(problems)
