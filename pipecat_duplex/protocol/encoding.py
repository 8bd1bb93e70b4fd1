"""From messages to bytes and back.

The first byte of a binary message is its kind. ``parse(encode(message))`` is the message again, and
:func:`parse` raises only :class:`WireError`, for any bytes.
"""

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pipecat_duplex.protocol.messages import (
    MAX_HEARD_WORDS,
    AgentStep,
    Audio,
    Control,
    Error,
    Handshake,
    Heard,
    HistoryPiece,
    Hold,
    Kind,
    Message,
    Metadata,
    Pcm,
    Ping,
    Say,
    SayAnswer,
    SpeechNote,
    Text,
    Tokens,
    TooLong,
    WireError,
)
from pipecat_duplex.session import STEP_SAMPLES, HeardWord, Said, Step, StepTiming
from pipecat_duplex.session.history import STREAMS

MAX_MESSAGE_BYTES = 1024 * 1024
"""Longest message that is read at all: words for the agent, and what became of them."""

MAX_SHORT_BYTES = 64 * 1024
"""Longest message of every other kind."""

MAX_TEXT_BYTES = 4096
"""Longest text, error or piece."""

MAX_TOLD_BYTES = 256 * 1024
"""Longest text of what was spoken, and of what was not: words that came bit by bit go beyond."""

MAX_HEARD_BYTES = 256
"""Longest word of the user's."""

MAX_UNSAYABLE = 64
"""Most words that a note tells of as left out."""

_PCM_BYTES = 4 * STEP_SAMPLES
_TOKENS = struct.Struct(f"<I{STREAMS}H")
_STEP_HEADER = struct.Struct("<Iiff")
_HANDSHAKE = struct.Struct("<II")
_LONG_KINDS = (Kind.SAY, Kind.SPEECH)


def encode(message: Message) -> bytes:
    """Return the bytes of a message.

    Reasons longer than :data:`MAX_TEXT_BYTES`, and what is told of words, are shortened.
    """
    kind, write = _WRITERS[type(message)]
    return bytes([kind]) + write(message)


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
    if not message:
        return None
    longest = MAX_MESSAGE_BYTES if message[0] in _LONG_KINDS else MAX_SHORT_BYTES
    if len(message) > longest:
        raise TooLong(f"a message of {len(message)} bytes; at most {longest} are taken")
    read = _READERS.get(message[0])
    return read(message[1:]) if read else None


def shorten(text: str, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """Cut a text to so many bytes of UTF-8, in whole characters."""
    data = text.encode("utf-8", errors="replace")
    if len(data) <= max_bytes:
        return data.decode()
    return data[: max_bytes - 3].decode(errors="ignore") + "…"


#
# one kind after another
#


def _write_handshake(message: Handshake) -> bytes:
    # Without versions it is in its short form, which every client understands.
    return b"" if message.versions is None else _HANDSHAKE.pack(*message.versions)


def _read_handshake(payload: bytes) -> Handshake:
    if len(payload) != _HANDSHAKE.size:
        return Handshake()
    return Handshake(_HANDSHAKE.unpack(payload))


def _write_text(message: Text) -> bytes:
    return message.text.encode("utf-8", errors="replace")


def _read_text(payload: bytes) -> Text:
    return Text(_decode_text(payload))


def _write_control(message: Control) -> bytes:
    return bytes([message.action])


def _read_control(payload: bytes) -> Control | None:
    return Control(payload[0]) if payload else None


def _write_metadata(message: Metadata) -> bytes:
    return _encode_json(message.fields)


def _read_metadata(payload: bytes) -> Metadata:
    return Metadata(_decode_json(payload, "metadata"))


def _write_error(message: Error) -> bytes:
    return shorten(message.reason).encode()


def _read_error(payload: bytes) -> Error:
    return Error(_decode_text(payload[:MAX_TEXT_BYTES]))


def _write_nothing(_message: Ping) -> bytes:
    return b""


def _read_ping(_payload: bytes) -> Ping:
    return Ping()


def _write_pcm(message: Pcm) -> bytes:
    return message.pcm.astype("<f4", copy=False).tobytes()


def _read_pcm(payload: bytes) -> Pcm:
    if len(payload) != _PCM_BYTES:
        raise WireError(f"a raw step has {_PCM_BYTES} bytes, not {len(payload)}")
    return Pcm(_decode_pcm(payload))


def _write_step(message: AgentStep) -> bytes:
    step, timing = message.step, message.step.timing
    header = _STEP_HEADER.pack(step.index, step.text_token, timing.waited_secs, timing.compute_secs)
    pcm = step.pcm.astype("<f4", copy=False).tobytes()
    return header + pcm + (step.text_piece or "").encode("utf-8", errors="replace")


def _read_step(payload: bytes) -> AgentStep:
    rest = _STEP_HEADER.size + _PCM_BYTES
    if len(payload) < rest:
        raise WireError(f"a step has at least {rest} bytes, not {len(payload)}")
    index, token, waited_secs, compute_secs = _STEP_HEADER.unpack_from(payload)
    pcm = _decode_pcm(payload[_STEP_HEADER.size : rest])
    piece = _decode_text(payload[rest:]) or None
    timing = StepTiming(_finite(waited_secs), _finite(compute_secs))
    return AgentStep(Step(index, pcm, token, piece, timing))


def _write_say(message: Say) -> bytes:
    fields = {"request": message.request, "text": message.text, "cut_in": message.cut_in}
    if message.more:
        fields["more"] = True
    if message.utterance_id is not None:
        fields["utterance"] = message.utterance_id
    if message.asks:
        fields["asks"] = True
    return _encode_json(fields)


def _read_say(payload: bytes) -> Say:
    fields = _decode_json(payload, "a say")
    text = fields.get("text")
    if text is not None and not isinstance(text, str):
        raise WireError("a say whose text is not a string")
    cut_in, more = fields.get("cut_in") is True, fields.get("more") is True
    utterance_id = None if fields.get("utterance") is None else _number(fields, "utterance")
    asks = fields.get("asks") is True
    return Say(_number(fields, "request"), text, cut_in, more, utterance_id, asks)


def _write_hold(message: Hold) -> bytes:
    return _encode_json({"held": message.held})


def _read_hold(payload: bytes) -> Hold:
    return Hold(_decode_json(payload, "a hold").get("held") is True)


def _write_answer(message: SayAnswer) -> bytes:
    fields: dict[str, Any] = {
        "request": message.request,
        "utterance": message.utterance_id,
        "error": shorten(message.error),
    }
    if message.lacks:
        fields["lacks"] = [shorten(word) for word in message.lacks[:MAX_UNSAYABLE]]
    return _encode_json(fields)


def _write_note(message: SpeechNote) -> bytes:
    fields: dict[str, Any] = {
        "step": message.index,
        "utterance": message.utterance_id,
        "said": [_said_fields(each) for each in message.said],
    }
    if message.wish:
        fields["wish"] = True
    if message.unheeded:
        fields["unheeded"] = True
    return _encode_json(fields)


def _said_fields(said: Said) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "utterance": said.utterance_id,
        "spoken": shorten(said.spoken, MAX_TOLD_BYTES),
        "unspoken": shorten(said.unspoken, MAX_TOLD_BYTES),
    }
    if said.unsayable:
        fields["unsayable"] = [shorten(word) for word in said.unsayable[:MAX_UNSAYABLE]]
    return fields


def _read_speech(payload: bytes) -> SayAnswer | SpeechNote:
    fields = _decode_json(payload, "speech")
    utterance_id = None if fields.get("utterance") is None else _number(fields, "utterance")
    if "request" in fields:
        error = shorten(str(fields.get("error", "")))
        lacks = fields.get("lacks", [])
        if not isinstance(lacks, list):
            raise WireError("an answer whose lacking words are not a list")
        return SayAnswer(
            _number(fields, "request"), utterance_id, error, tuple(map(str, lacks[:MAX_UNSAYABLE]))
        )
    said = fields.get("said", [])
    if not isinstance(said, list) or not all(isinstance(each, dict) for each in said):
        raise WireError("speech that does not tell what was said")
    return SpeechNote(
        _number(fields, "step"),
        utterance_id,
        tuple(map(_said, said)),
        wish=fields.get("wish") is True,
        unheeded=fields.get("unheeded") is True,
    )


def _said(fields: Mapping[str, Any]) -> Said:
    spoken, unspoken = str(fields.get("spoken", "")), str(fields.get("unspoken", ""))
    unsayable = fields.get("unsayable", [])
    if not isinstance(unsayable, list):
        raise WireError("speech whose unsayable words are not a list")
    return Said(_number(fields, "utterance"), spoken, unspoken, tuple(map(str, unsayable)))


def _write_tokens(message: Tokens) -> bytes:
    return _TOKENS.pack(message.index, *message.tokens.tolist())


def _read_tokens(payload: bytes) -> Tokens:
    if len(payload) != _TOKENS.size:
        raise WireError(f"the tokens of a step have {_TOKENS.size} bytes, not {len(payload)}")
    index, *tokens = _TOKENS.unpack(payload)
    return Tokens(index, np.array(tokens, np.int32))


def _write_heard(message: Heard) -> bytes:
    words = [
        [shorten(each.text, MAX_HEARD_BYTES), each.start_step, each.end_step]
        for each in message.words
    ]
    return _encode_json({"step": message.index, "words": words})


def _read_heard(payload: bytes) -> Heard:
    fields = _decode_json(payload, "what was heard")
    words = fields.get("words")
    if not isinstance(words, list) or len(words) > MAX_HEARD_WORDS:
        raise WireError("what was heard is no list of words, or too long a one")
    return Heard(_number(fields, "step"), tuple(map(_heard_word, words)))


def _heard_word(word: object) -> HeardWord:
    match word:
        case [str(text), int(start), int(end)] if max(abs(start), abs(end)) < 2**53:
            # True is a number of Python's.
            return HeardWord(shorten(text, MAX_HEARD_BYTES), int(start), int(end))
    raise WireError("a word that was heard is a text and two steps")


def _write_data(message: Audio | HistoryPiece) -> bytes:
    return message.data


_READERS: dict[int, Callable[[bytes], Message | None]] = {
    Kind.HANDSHAKE: _read_handshake,
    Kind.AUDIO: Audio,
    Kind.TEXT: _read_text,
    Kind.CONTROL: _read_control,
    Kind.METADATA: _read_metadata,
    Kind.ERROR: _read_error,
    Kind.PING: _read_ping,
    Kind.PCM: _read_pcm,
    Kind.STEP: _read_step,
    Kind.SAY: _read_say,
    Kind.SPEECH: _read_speech,
    Kind.TOKENS: _read_tokens,
    Kind.HISTORY: HistoryPiece,
    Kind.HOLD: _read_hold,
    Kind.HEARD: _read_heard,
}

_WRITERS: dict[type, tuple[Kind, Callable[[Any], bytes]]] = {
    Handshake: (Kind.HANDSHAKE, _write_handshake),
    Audio: (Kind.AUDIO, _write_data),
    Text: (Kind.TEXT, _write_text),
    Control: (Kind.CONTROL, _write_control),
    Metadata: (Kind.METADATA, _write_metadata),
    Error: (Kind.ERROR, _write_error),
    Ping: (Kind.PING, _write_nothing),
    Pcm: (Kind.PCM, _write_pcm),
    AgentStep: (Kind.STEP, _write_step),
    Say: (Kind.SAY, _write_say),
    SayAnswer: (Kind.SPEECH, _write_answer),
    SpeechNote: (Kind.SPEECH, _write_note),
    Tokens: (Kind.TOKENS, _write_tokens),
    HistoryPiece: (Kind.HISTORY, _write_data),
    Hold: (Kind.HOLD, _write_hold),
    Heard: (Kind.HEARD, _write_heard),
}


#
# what kinds share
#


def _number(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**53:
        raise WireError(f"{name} is not a whole number from 0 on")
    return value


def _encode_json(fields: Mapping[str, Any]) -> bytes:
    # Half of a surrogate pair is a string of Python's and of JSON's: it comes out as it went in.
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", errors="surrogatepass")


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


def _finite(secs: float) -> float:
    return secs if 0 <= secs < 1e6 else 0.0
