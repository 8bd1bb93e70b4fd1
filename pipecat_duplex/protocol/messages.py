"""The messages of Moshi's protocol.

Kinds 0 to 7 are Moshi's own. Kinds from 16 on belong to this package, and are used only between
two sides that have agreed on them (``docs/protocol.md``).
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from pipecat_duplex.session import DuplexError, HeardWord, Said, Step

MAX_PIECE_BYTES = 32 * 1024
"""Longest piece of a history."""

MAX_HEARD_WORDS = 32
"""Most words of the user's in one message."""


class WireError(DuplexError, ValueError):
    """Bytes or query parameters that do not follow the protocol."""


class TooLong(WireError):
    """A message that is longer than its kind may be."""


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
    HOLD = 22
    HEARD = 23


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
    """What a server says about itself and the session, see :class:`~.greeting.Greeting`.

    Parameters:
        fields: A JSON object.
    """

    fields: dict[str, Any]


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
        more: Whether more follows.
        utterance_id: The utterance that this goes on with; such a message has no answer.
        asks: Whether it is only asked if the model has the words; nothing is said.
    """

    request: int
    text: str | None
    cut_in: bool = False
    more: bool = False
    utterance_id: int | None = None
    asks: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """Whether the model's own words are kept back.

    Parameters:
        held: Whether they are.
    """

    held: bool


@dataclass(frozen=True, slots=True)
class SayAnswer:
    """What a server answers to :class:`Say`.

    Parameters:
        request: The client's number for it.
        utterance_id: The number of the utterance, 0 for a question; ``None`` if it cannot be said.
        error: Why it cannot be said.
        lacks: The words that the model does not have.
    """

    request: int
    utterance_id: int | None = None
    error: str = ""
    lacks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SpeechNote:
    """What else there is to tell of a step. The note comes before its step.

    Parameters:
        index: The step.
        utterance_id: The utterance that its piece belongs to.
        said: Utterances that ended.
        wish: Whether the model would have begun words of its own, which are kept back.
        unheeded: Whether a sound of the user's was kept from the model.
    """

    index: int
    utterance_id: int | None
    said: tuple[Said, ...] = ()
    wish: bool = False
    unheeded: bool = False

    @classmethod
    def of(cls, step: Step) -> "list[SpeechNote]":
        """Return the notes on a step: none, one, or one for each utterance that ended."""
        if step.utterance_id is None and not (step.said or step.wish or step.unheeded):
            return []
        # Each utterance in a note of its own, so that no note is longer than the wire takes.
        parts = [(said,) for said in step.said] or [()]
        return [
            cls(step.index, step.utterance_id, part, step.wish, step.unheeded) for part in parts
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """All tokens of a step. They come before the step.

    Parameters:
        index: The step.
        tokens: Int32, shape ``(17,)``.
    """

    index: int
    tokens: np.ndarray

    @classmethod
    def of(cls, step: Step) -> "list[Tokens]":
        """Return the tokens of a step, if they are known."""
        return [] if step.tokens is None else [cls(step.index, step.tokens)]


@dataclass(frozen=True, slots=True)
class Heard:
    """Words of the user's that the server recognised. They come before the step.

    Parameters:
        index: The step that they come with.
        words: The words, of earlier steps.
    """

    index: int
    words: tuple[HeardWord, ...]

    @classmethod
    def of(cls, step: Step) -> "list[Heard]":
        """Return what was recognised before a step, in messages that are not too long."""
        starts = range(0, len(step.heard), MAX_HEARD_WORDS)
        return [cls(step.index, step.heard[start : start + MAX_HEARD_WORDS]) for start in starts]


@dataclass(frozen=True, slots=True)
class HistoryPiece:
    """A piece of a history to go on with. An empty piece ends it.

    From a server it is the answer: empty, or why it cannot go on.

    Parameters:
        data: The bytes.
    """

    data: bytes

    @classmethod
    def split(cls, history: bytes) -> "list[HistoryPiece]":
        """Return the pieces of a history, the last of them empty."""
        starts = range(0, len(history), MAX_PIECE_BYTES)
        pieces = [history[start : start + MAX_PIECE_BYTES] for start in starts]
        return [cls(piece) for piece in [*pieces, b""]]


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
    | Hold
    | SayAnswer
    | SpeechNote
    | Tokens
    | Heard
    | HistoryPiece
)
