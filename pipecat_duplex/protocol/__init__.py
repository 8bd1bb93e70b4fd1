"""Moshi's protocol: what the bytes of a WebSocket message and the query of its URL mean.

``docs/protocol.md`` describes it. Nothing here does I/O.
"""

from pipecat_duplex.protocol.encoding import (
    MAX_MESSAGE_BYTES,
    MAX_SHORT_BYTES,
    MAX_TEXT_BYTES,
    encode,
    parse,
    shorten,
)
from pipecat_duplex.protocol.greeting import RESTORE, SAY, Greeting
from pipecat_duplex.protocol.messages import (
    MAX_PIECE_BYTES,
    AgentStep,
    Audio,
    Control,
    Error,
    Handshake,
    HistoryPiece,
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
from pipecat_duplex.protocol.query import (
    MAX_SEED,
    AudioFormat,
    SessionRequest,
    build_query,
    parse_query,
)

__all__ = [
    "MAX_MESSAGE_BYTES",
    "MAX_PIECE_BYTES",
    "MAX_SEED",
    "MAX_SHORT_BYTES",
    "MAX_TEXT_BYTES",
    "RESTORE",
    "SAY",
    "AgentStep",
    "Audio",
    "AudioFormat",
    "Control",
    "Error",
    "Greeting",
    "Handshake",
    "HistoryPiece",
    "Kind",
    "Message",
    "Metadata",
    "Pcm",
    "Ping",
    "Say",
    "SayAnswer",
    "SessionRequest",
    "SpeechNote",
    "Text",
    "Tokens",
    "TooLong",
    "WireError",
    "build_query",
    "encode",
    "parse",
    "parse_query",
    "shorten",
]
