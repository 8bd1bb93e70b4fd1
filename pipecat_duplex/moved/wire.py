"""``pipecat_duplex.wire`` of 0.3: one function for each kind, where there is one for all now."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipecat_duplex.protocol import *  # noqa: F403
from pipecat_duplex.protocol import (
    AgentStep,
    Audio,
    Error,
    Handshake,
    HistoryPiece,
    Metadata,
    Pcm,
    Ping,
    Say,
    SayAnswer,
    SpeechNote,
    Text,
    Tokens,
    encode,
)
from pipecat_duplex.session import Step


def encode_handshake() -> bytes:
    """Return the handshake in its short form."""
    return encode(Handshake())


def encode_audio(data: bytes) -> bytes:
    """Return a message with a piece of the Ogg-Opus stream."""
    return encode(Audio(data))


def encode_text(text: str) -> bytes:
    """Return a message with a piece of the monologue."""
    return encode(Text(text))


def encode_metadata(fields: Mapping[str, Any]) -> bytes:
    """Return a message with a JSON object."""
    return encode(Metadata(dict(fields)))


def encode_error(reason: str) -> bytes:
    """Return a message that says what went wrong."""
    return encode(Error(reason))


def encode_ping() -> bytes:
    """Return a sign of life."""
    return encode(Ping())


def encode_pcm(pcm: np.ndarray) -> bytes:
    """Return a message with a step of the user's audio."""
    return encode(Pcm(pcm))


def encode_step(step: Step) -> bytes:
    """Return a message with a step of the agent."""
    return encode(AgentStep(step))


def encode_say(say: Say) -> bytes:
    """Return a message that lets the agent speak."""
    return encode(say)


def encode_say_answer(answer: SayAnswer) -> bytes:
    """Return the answer to it."""
    return encode(answer)


def encode_speech_note(step: Step) -> bytes | None:
    """Return what is to be known before a step in which given words are spoken, if anything."""
    if step.utterance_id is None and not step.said:
        return None
    return encode(SpeechNote(step.index, step.utterance_id, step.said))


def encode_tokens(step: Step) -> bytes | None:
    """Return a message with all tokens of a step, if they are known."""
    return None if step.tokens is None else encode(Tokens(step.index, step.tokens))


def encode_history(data: bytes) -> list[bytes]:
    """Return the messages that carry a history, the last of them empty."""
    return [encode(piece) for piece in HistoryPiece.split(data)]


def encode_history_answer(error: str = "") -> bytes:
    """Return the answer to a history: nothing, or why the server cannot go on with it."""
    return encode(HistoryPiece(error.encode("utf-8", errors="replace")))
