"""The messages of Moshi's protocol: what the bytes of a WebSocket message mean.

The first byte of a binary message is its kind. Kinds 0 to 6 are Moshi's own; those from 16 on are
this package's, used only between two that have agreed on them (``docs/protocol.md``). No I/O
happens here, and whatever the bytes, :func:`parse` raises nothing but :class:`WireError`.
"""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from pipecat_duplex.session import (
    STEP_SAMPLES,
    DuplexError,
    Said,
    Step,
    StepTiming,
)
from pipecat_duplex.session.history import STREAMS

MAX_MESSAGE_BYTES = 64 * 1024
"""Longest message that is read at all; the longest that is sent has under 8 KiB."""

MAX_TEXT_BYTES = 4096
"""Longest text, error or piece."""

MAX_PIECE_BYTES = 32 * 1024
"""Longest piece of a history."""

SAY = "say"
"""Feature of a server that lets its agent speak words that it is given."""

RESTORE = "restore"
"""Feature of a server that gives out tokens, and goes on with conversations held elsewhere."""

_PCM_BYTES = 4 * STEP_SAMPLES
_TOKENS = struct.Struct(f"<I{STREAMS}H")
_STEP_HEADER = struct.Struct("<Iiff")
_HANDSHAKE = struct.Struct("<II")


class WireError(DuplexError, ValueError):
    """Bytes or query parameters that do not follow the protocol."""


class Kind(IntEnum):
    """First byte of a message."""

    HANDSHAKE = 0
    AUDIO = 1
    TEXT = 2
    CONTROL = 3
    METADATA = 4
    ERROR = 5
    PING = 6
    PCM = 16
    STEP = 17
    SAY = 18
    SPEECH = 19
    TOKENS = 20
    HISTORY = 21


@dataclass(frozen=True, slots=True)
class Handshake:
    """The server is ready for audio.

    Parameters:
        versions: Protocol and model version, which only the Rust backend sends.
    """

    versions: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Audio:
    """A piece of the Ogg-Opus stream, 24 kHz mono.

    Parameters:
        data: Bytes of the stream, cut anywhere.
    """

    data: bytes


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the monologue, with a space where SentencePiece has ``▁``.

    Parameters:
        text: The piece.
    """

    text: str


@dataclass(frozen=True, slots=True)
class Control:
    """A command, of which full-duplex servers take none.

    Parameters:
        action: 0 start, 1 end of turn, 2 pause, 3 restart.
    """

    action: int


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a server says about itself and the session.

    Parameters:
        fields: A JSON object.
    """

    fields: dict[str, Any]

    @property
    def ours(self) -> dict[str, Any]:
        """What this package's server says; empty from others."""
        ours = self.fields.get("pipecat_duplex")
        return ours if isinstance(ours, dict) else {}

    @property
    def max_secs(self) -> float | None:
        """The session ends after this much audio."""
        return _secs_or_none(self.ours.get("max_secs"))

    @property
    def secs_left(self) -> float | None:
        """The session ends so many seconds from now."""
        return _secs_or_none(self.ours.get("secs_left"))


@dataclass(frozen=True, slots=True)
class Error:
    """What went wrong, for a person.

    Parameters:
        reason: The reason.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Ping:
    """A sign of life."""


@dataclass(frozen=True, slots=True, eq=False)
class Pcm:
    """One step of the user's audio, raw.

    Parameters:
        pcm: Float32 in [-1, 1], shape ``(STEP_SAMPLES,)``, 24 kHz.
    """

    pcm: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class AgentStep:
    """One step of the agent, with raw audio.

    Parameters:
        step: The step; its timing is the server's.
    """

    step: Step


@dataclass(frozen=True, slots=True)
class Say:
    """Words for the agent to speak.

    Parameters:
        request: The client's number for it, which the answer carries.
        text: What to say; ``None`` drops what has not been said.
        cut_in: Whether it does not wait.
    """

    request: int
    text: str | None
    cut_in: bool = False


@dataclass(frozen=True, slots=True)
class SayAnswer:
    """What a server answers to :class:`Say`.

    Parameters:
        request: The client's number for it.
        utterance_id: The number of the utterance; ``None`` if it will not be said.
        error: Why it will not be said.
    """

    request: int
    utterance_id: int | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class SpeechNote:
    """What is to be known of a step in which given words are spoken. It comes before the step.

    Parameters:
        index: The step.
        utterance_id: The utterance that its piece belongs to.
        said: Utterances that came to their end.
    """

    index: int
    utterance_id: int | None
    said: tuple[Said, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """All tokens of a step, before the step.

    Parameters:
        index: The step.
        tokens: Int32, shape ``(17,)``.
    """

    index: int
    tokens: np.ndarray


@dataclass(frozen=True, slots=True)
class HistoryPiece:
    """A piece of a history, to go on with; an empty one ends it.

    From a server it is the answer: empty, or why it cannot go on.

    Parameters:
        data: The bytes.
    """

    data: bytes


Message = (
    Handshake
    | Audio
    | Text
    | Control
    | Metadata
    | Error
    | Ping
    | Pcm
    | AgentStep
    | Say
    | SayAnswer
    | SpeechNote
    | Tokens
    | HistoryPiece
)


#
# messages to bytes
#


def encode_handshake() -> bytes:
    """Return the handshake in its short form, which every client understands."""
    return bytes([Kind.HANDSHAKE])


def encode_audio(data: bytes) -> bytes:
    """Return a message with a piece of the Ogg-Opus stream."""
    return bytes([Kind.AUDIO]) + data


def encode_text(text: str) -> bytes:
    """Return a message with a piece of the monologue."""
    return bytes([Kind.TEXT]) + text.encode("utf-8", errors="replace")


def encode_metadata(fields: Mapping[str, Any]) -> bytes:
    """Return a message with a JSON object."""
    return _encode_json(Kind.METADATA, fields)


def encode_error(reason: str) -> bytes:
    """Return a message that says what went wrong."""
    return bytes([Kind.ERROR]) + reason.encode("utf-8", errors="replace")[:MAX_TEXT_BYTES]


def encode_ping() -> bytes:
    """Return a sign of life."""
    return bytes([Kind.PING])


def encode_pcm(pcm: np.ndarray) -> bytes:
    """Return a message with a step of the user's audio.

    Args:
        pcm: Float32, shape ``(STEP_SAMPLES,)``.
    """
    return bytes([Kind.PCM]) + pcm.astype("<f4", copy=False).tobytes()


def encode_step(step: Step) -> bytes:
    """Return a message with a step of the agent."""
    header = _STEP_HEADER.pack(
        step.index, step.text_token, step.timing.waited_secs, step.timing.compute_secs
    )
    pcm = step.pcm.astype("<f4", copy=False).tobytes()
    return bytes([Kind.STEP]) + header + pcm + (step.text_piece or "").encode()


def encode_say(say: Say) -> bytes:
    """Return a message that lets the agent speak."""
    return _encode_json(Kind.SAY, {"request": say.request, "text": say.text, "cut_in": say.cut_in})


def encode_say_answer(answer: SayAnswer) -> bytes:
    """Return the answer to it."""
    fields = {"request": answer.request, "utterance": answer.utterance_id, "error": answer.error}
    return _encode_json(Kind.SPEECH, fields)


def encode_speech_note(step: Step) -> bytes | None:
    """Return what is to be known before a step in which given words are spoken, if anything."""
    if step.utterance_id is None and not step.said:
        return None
    said = [
        {"utterance": each.utterance_id, "spoken": each.spoken, "unspoken": each.unspoken}
        for each in step.said
    ]
    fields = {"step": step.index, "utterance": step.utterance_id, "said": said}
    return _encode_json(Kind.SPEECH, fields)


def encode_tokens(step: Step) -> bytes | None:
    """Return a message with all tokens of a step, if they are known."""
    if step.tokens is None:
        return None
    return bytes([Kind.TOKENS]) + _TOKENS.pack(step.index, *step.tokens.tolist())


def encode_history(data: bytes) -> list[bytes]:
    """Return the messages that carry a history, the last of them empty."""
    starts = range(0, len(data), MAX_PIECE_BYTES)
    pieces = [data[start : start + MAX_PIECE_BYTES] for start in starts] + [b""]
    return [bytes([Kind.HISTORY]) + piece for piece in pieces]


def encode_history_answer(error: str = "") -> bytes:
    """Return the answer to a history: nothing, or why the server cannot go on with it."""
    return bytes([Kind.HISTORY]) + error.encode("utf-8", errors="replace")[:MAX_TEXT_BYTES]


def _encode_json(kind: Kind, fields: Mapping[str, Any]) -> bytes:
    return bytes([kind]) + json.dumps(fields).encode()


#
# bytes to messages
#


def parse(message: object) -> Message | None:
    """Say what a message means.

    Args:
        message: What came out of the socket.

    Returns:
        The message, or ``None`` where the protocol says to ignore it: unknown kinds, and nothing.

    Raises:
        WireError: It is too long, no bytes, or its content does not fit its kind.
    """
    if not isinstance(message, bytes | bytearray | memoryview):
        raise WireError("a text message came where the protocol has binary ones")
    message = bytes(message)
    if len(message) > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {len(message)} bytes; at most {MAX_MESSAGE_BYTES} are taken")
    if not message:
        return None
    parse_kind = _PARSERS.get(message[0])
    return parse_kind(message[1:]) if parse_kind else None


def _parse_handshake(payload: bytes) -> Handshake:
    if len(payload) != _HANDSHAKE.size:
        return Handshake()
    return Handshake(_HANDSHAKE.unpack(payload))


def _parse_text(payload: bytes) -> Text:
    return Text(_decode_text(payload))


def _parse_control(payload: bytes) -> Control | None:
    return Control(payload[0]) if payload else None


def _parse_metadata(payload: bytes) -> Metadata:
    return Metadata(_decode_json(payload, "metadata"))


def _parse_error(payload: bytes) -> Error:
    return Error(_decode_text(payload[:MAX_TEXT_BYTES]))


def _parse_ping(_payload: bytes) -> Ping:
    return Ping()


def _parse_pcm(payload: bytes) -> Pcm:
    if len(payload) != _PCM_BYTES:
        raise WireError(f"a raw step has {_PCM_BYTES} bytes, not {len(payload)}")
    return Pcm(_decode_pcm(payload))


def _parse_step(payload: bytes) -> AgentStep:
    rest = _STEP_HEADER.size + _PCM_BYTES
    if len(payload) < rest:
        raise WireError(f"a step has at least {rest} bytes, not {len(payload)}")
    index, token, waited_secs, compute_secs = _STEP_HEADER.unpack_from(payload)
    pcm = _decode_pcm(payload[_STEP_HEADER.size : rest])
    piece = _decode_text(payload[rest:]) or None
    timing = StepTiming(_finite(waited_secs), _finite(compute_secs))
    return AgentStep(Step(index, pcm, token, piece, timing))


def _parse_say(payload: bytes) -> Say:
    fields = _decode_json(payload, "a say")
    text = fields.get("text")
    if text is not None and not isinstance(text, str):
        raise WireError("a say whose text is none")
    if text is not None and len(text.encode()) > MAX_TEXT_BYTES:
        raise WireError(f"a say of more than {MAX_TEXT_BYTES} bytes")
    return Say(_number(fields, "request"), text, fields.get("cut_in") is True)


def _parse_speech(payload: bytes) -> SayAnswer | SpeechNote:
    fields = _decode_json(payload, "speech")
    utterance_id = None if fields.get("utterance") is None else _number(fields, "utterance")
    if "request" in fields:
        error = str(fields.get("error", ""))[:MAX_TEXT_BYTES]
        return SayAnswer(_number(fields, "request"), utterance_id, error)
    said = fields.get("said", [])
    if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
        raise WireError("speech that does not tell what was said")
    return SpeechNote(
        _number(fields, "step"),
        utterance_id,
        tuple(
            Said(
                _number(each, "utterance"),
                str(each.get("spoken", "")),
                str(each.get("unspoken", "")),
            )
            for each in said
        ),
    )


def _parse_tokens(payload: bytes) -> Tokens:
    if len(payload) != _TOKENS.size:
        raise WireError(f"the tokens of a step have {_TOKENS.size} bytes, not {len(payload)}")
    index, *tokens = _TOKENS.unpack(payload)
    return Tokens(index, np.array(tokens, np.int32))


def _number(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise WireError(f"{name} is no number")
    return value


_PARSERS: dict[int, Callable[[bytes], Message | None]] = {
    Kind.HANDSHAKE: _parse_handshake,
    Kind.AUDIO: Audio,
    Kind.TEXT: _parse_text,
    Kind.CONTROL: _parse_control,
    Kind.METADATA: _parse_metadata,
    Kind.ERROR: _parse_error,
    Kind.PING: _parse_ping,
    Kind.PCM: _parse_pcm,
    Kind.STEP: _parse_step,
    Kind.SAY: _parse_say,
    Kind.SPEECH: _parse_speech,
    Kind.TOKENS: _parse_tokens,
    Kind.HISTORY: HistoryPiece,
}


def _decode_json(payload: bytes, what: str) -> dict[str, Any]:
    try:
        fields = json.loads(payload)
    except (ValueError, RecursionError) as e:
        raise WireError(f"{what} that is not JSON: {e}") from e
    if not isinstance(fields, dict):
        raise WireError(f"{what} that is not a JSON object")
    return fields


def _decode_text(payload: bytes) -> str:
    if len(payload) > MAX_TEXT_BYTES:
        raise WireError(f"a text of {len(payload)} bytes; at most {MAX_TEXT_BYTES} are taken")
    return payload.decode("utf-8", errors="replace")


def _decode_pcm(payload: bytes) -> np.ndarray:
    pcm = np.frombuffer(payload, dtype="<f4")
    if not np.isfinite(pcm).all():
        raise WireError("raw audio that holds NaN or infinity")
    return np.clip(pcm, -1, 1).astype(np.float32, copy=False)


def _secs_or_none(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < 1e9 else None


def _finite(secs: float) -> float:
    return secs if 0 <= secs < 1e6 else 0.0
