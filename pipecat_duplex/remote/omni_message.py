"""The messages of vLLM-Omni's duplex endpoint, as far as a call needs them.

They are events of OpenAI's Realtime protocol with extensions, one JSON object a text message.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipecat_duplex.protocol import WireError
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SECS

STEP_MS = round(1000 * STEP_SECS)

_PCM16 = ("pcm16", "pcm_s16le", "s16le")


@dataclass(frozen=True, slots=True)
class Created:
    """The session has begun.

    Parameters:
        session: The server's name for it.
        chunk_period_ms: How much audio the model takes at once; None where the server says nothing
            of it.
    """

    session: str
    chunk_period_ms: int | None


@dataclass(frozen=True, slots=True)
class Sound:
    """Audio of the agent.

    Parameters:
        pcm: Float32, 24 kHz, of any length.
    """

    pcm: np.ndarray


@dataclass(frozen=True, slots=True)
class Spoken:
    """What is said in the sound before it; the server sends one for each, and most are empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Failure:
    """Something went wrong.

    Parameters:
        code: The server's word for it.
        message: Why, for people.
        is_limit: Whether there is too much of something, and not something wrong.
    """

    code: str
    message: str
    is_limit: bool


@dataclass(frozen=True, slots=True)
class Ended:
    """The session is over, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Other:
    """An event that makes no difference to a call."""

    kind: str


Event = Created | Sound | Spoken | Failure | Ended | Other


def parse(message: str | bytes) -> tuple[Event, int | None]:
    """Read a message.

    Args:
        message: As it came.

    Returns:
        What it says, and its number, which can be acknowledged.

    Raises:
        WireError: It makes no sense.
    """
    if not isinstance(message, str):
        raise WireError("bytes, where there are only texts")
    try:
        fields = json.loads(message)
    except (ValueError, RecursionError) as e:
        raise WireError(f"a message that is no JSON: {message[:40]!r}") from e
    if not isinstance(fields, dict) or not isinstance(fields.get("type"), str):
        raise WireError(f"a message that is no object with a type: {message[:40]!r}")
    number = fields.get("server_event_seq")
    return _read(fields["type"], fields), number if isinstance(number, int) else None


def _read(kind: str, fields: dict[str, Any]) -> Event:
    match kind:
        case "session.created":
            session = _object(fields.get("session"))
            period_ms = _object(session.get("capabilities")).get("chunk_period_ms")
            return Created(
                _text(session.get("id")), period_ms if isinstance(period_ms, int) else None
            )
        case "response.output_audio.delta" | "response.audio.delta":
            return Sound(_read_audio(fields))
        case "response.output_audio_transcript.delta" | "response.audio_transcript.delta":
            return Spoken(_text(fields.get("delta")))
        case "error":
            return _read_failure(fields)
        case "session.closed" | "session.expired":
            return Ended(_text(fields.get("reason")) or kind)
        case "session.replaced":
            return Ended("another connection took it over")
    return Other(kind)


def _read_audio(fields: dict[str, Any]) -> np.ndarray:
    rate_hz = fields.get("sample_rate_hz", SAMPLE_RATE_HZ)
    audio_format = fields.get("format", _PCM16[0])
    if rate_hz != SAMPLE_RATE_HZ or audio_format not in _PCM16:
        told = f"{audio_format!r:.40} at {rate_hz!r:.40} Hz"
        raise WireError(f"audio in {told}, where pcm16 at {SAMPLE_RATE_HZ} Hz was agreed on")
    if not isinstance(fields.get("delta"), str):
        raise WireError("a delta with no audio")
    try:
        data = base64.b64decode(fields["delta"], validate=True)
    except (binascii.Error, ValueError) as e:
        raise WireError("audio that is no base64") from e
    if len(data) % 2:
        raise WireError("audio that ends with half a sample")
    return np.frombuffer(data, "<i2").astype(np.float32) / 32768.0


def _read_failure(fields: dict[str, Any]) -> Failure:
    error = fields.get("error")
    if not isinstance(error, dict):  # Older servers, before a session has begun.
        error = {"message": error, "code": fields.get("code")}
    code = _text(error.get("code"))
    message = _text(error.get("message")) or "no reason given"
    # Older servers give no type then, but the same codes.
    is_limit = error.get("type") == "rate_limit_error" or code == "resource_exhausted"
    return Failure(code, message, is_limit)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    """Return a text as such; half of a surrogate pair, which JSON may hold, is no character."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else ""


def open_session(model: str, voice: str | None, instructions: str | None) -> str:
    """Return the message that opens a session.

    Args:
        model: The model's name.
        voice: The voice; the server's own if None.
        instructions: Who the agent is; the server's own if None.
    """
    session = {
        "model": model,
        "modalities": ["audio", "text"],
        "input_audio_format": "pcm_f32le",
        "output_audio_format": "pcm16",
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "audio": {
            "input": {"sample_rate_hz": SAMPLE_RATE_HZ},
            "output": {"sample_rate_hz": SAMPLE_RATE_HZ},
        },
        "turn_detection": None,
        "extra_body": {"auto_response": True},
    }
    asked = {"voice": voice, "instructions": instructions}
    session |= {name: value for name, value in asked.items() if value is not None}
    return json.dumps({"type": "session.update", "session": session})


def append(pcm: np.ndarray, index: int) -> str:
    """Return the message that carries a step of the user's audio.

    Args:
        pcm: Float32, 24 kHz.
        index: The number of the step, from 0.
    """
    return json.dumps(
        {
            "type": "input_audio_buffer.append",
            "audio": base64.b64encode(pcm.astype("<f4").tobytes()).decode(),
            "format": "pcm_f32le",
            "sample_rate_hz": SAMPLE_RATE_HZ,
            "duration_ms": STEP_MS,
            "audio_end_ms": (index + 1) * STEP_MS,
        }
    )


def acknowledge(number: int) -> str:
    """Return the message that lets the server forget the events up to a number."""
    return json.dumps({"type": "session.event_ack", "server_event_seq": number})


HEARTBEAT = json.dumps({"type": "session.heartbeat"})
"""The message that keeps a session in which nothing is sent."""

CLOSE = json.dumps({"type": "session.close"})
"""The message that ends a session."""
