"""The one contract between the conversation and the model, wherever the model runs.

A *session* is one conversation. It takes the user's audio one step (80 ms) at a time and gives
one :class:`Step` of the agent's audio and monologue back for each. In process, over a socket or on
a cluster, the service sees the same object.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from pipecat_duplex.history import History, Memory

SAMPLE_RATE_HZ = 24_000
"""The sample rate of every session, in both directions."""

STEP_SAMPLES = 1_920
"""Samples in one step: 80 ms at 24 kHz, the model's 12.5 Hz."""

STEP_SECS = STEP_SAMPLES / SAMPLE_RATE_HZ
"""Length of one step in seconds."""

TEXT_PADDING = 3
"""Text token of a step in which the agent begins or continues no word."""

TEXT_END_OF_PADDING = 0
"""Text token of the step just before a word."""


class DuplexError(Exception):
    """Base of all errors that a person is meant to read and act on."""


class AtCapacity(DuplexError):
    """Every slot is taken. Raised at once by ``open``: callers are never queued."""


class CheckpointError(DuplexError):
    """A checkpoint cannot be found, is incomplete, or does not hold a Moshi-family model."""


class MissingExtra(DuplexError):
    """An optional part of the package is not installed; the message says what to install."""


class CannotSay(DuplexError):
    """Words cannot be put into the agent's mouth; the message says which, or why."""


class InvalidPrompt(DuplexError, ValueError):
    """A persona cannot be had: there is no such voice, or it cannot be read."""


class InvalidHistory(DuplexError, ValueError):
    """A history is damaged, or was made with another checkpoint."""


class InvalidAudio(DuplexError, ValueError):
    """Audio handed to the package has the wrong shape, type, rate or length."""


def check_step_audio(pcm: np.ndarray) -> None:
    """Raise if this is no step of audio.

    Args:
        pcm: Should be float32, shape ``(STEP_SAMPLES,)``, and finite.

    Raises:
        InvalidAudio: It is not.
    """
    if not isinstance(pcm, np.ndarray):
        raise InvalidAudio(f"audio must be a numpy array, not {type(pcm).__name__}")
    if pcm.dtype != np.float32:
        raise InvalidAudio(f"audio must be float32, not {pcm.dtype}")
    if pcm.shape != (STEP_SAMPLES,):
        raise InvalidAudio(f"audio must have shape ({STEP_SAMPLES},), not {pcm.shape}")
    if not np.isfinite(pcm).all():
        raise InvalidAudio("audio must be finite, but holds NaN or infinity")


class SessionEnded(DuplexError):
    """The session is over and takes no more audio.

    Parameters:
        session_id: The session that ended.
        reason: Why, in words for a person.
    """

    def __init__(self, session_id: str, reason: str):
        """Initialize the error.

        Args:
            session_id: The session that ended.
            reason: Why, in words for a person.
        """
        super().__init__(f"session {session_id} ended: {reason}")
        self.session_id = session_id
        self.reason = reason


class Sampling(NamedTuple):
    """How tokens are chosen.

    Parameters:
        text_temperature: Sampling temperature of the monologue; 0 is greedy.
        text_top_k: The monologue samples among this many most likely tokens.
        audio_temperature: Sampling temperature of the agent's audio codebooks; 0 is greedy.
        audio_top_k: Each codebook samples among this many most likely entries.
    """

    text_temperature: float
    text_top_k: int
    audio_temperature: float
    audio_top_k: int


MOSHI_SAMPLING = Sampling(0.7, 25, 0.8, 250)
"""Moshi's published settings: the defaults of ``moshi.models.lm.LMGen``."""


class SessionConfig(BaseModel):
    """What one conversation asks of the model.

    A sampling field that is ``None`` is left to the checkpoint, or else to what is published with
    Moshi (:data:`MOSHI_SAMPLING`). A temperature of 0 is greedy: the most likely token is taken,
    and the seed has no effect.

    Parameters:
        text_temperature: Sampling temperature of the monologue.
        text_top_k: The monologue samples among this many most likely tokens.
        audio_temperature: Sampling temperature of the agent's audio codebooks.
        audio_top_k: Each codebook samples among this many most likely entries.
        seed: Makes the conversation repeatable. ``None`` draws a new one.
        max_secs: The session ends, with a reason, after this much audio. ``None`` is no limit.
        text_prompt: Who the agent is, for models that were trained to take a role.
        voice_prompt: The agent's voice, by its key among those that the engine was given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text_temperature: float | None = Field(default=None, ge=0, le=10, allow_inf_nan=False)
    text_top_k: int | None = Field(default=None, ge=1)
    audio_temperature: float | None = Field(default=None, ge=0, le=10, allow_inf_nan=False)
    audio_top_k: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    max_secs: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    text_prompt: str | None = Field(default=None, max_length=8000)
    voice_prompt: str | None = Field(default=None, max_length=200)

    @classmethod
    def greedy(cls, **changes) -> "SessionConfig":
        """Return a config that always takes the most likely token.

        Args:
            **changes: Other fields to set.
        """
        return cls(text_temperature=0, audio_temperature=0, **changes)

    def sampling(self, checkpoint: "Sampling | None" = None) -> "Sampling":
        """Return how to sample, with nothing left open.

        Args:
            checkpoint: What the checkpoint recommends.
        """
        recommended = checkpoint or MOSHI_SAMPLING
        asked = {name: getattr(self, name) for name in Sampling._fields}
        return recommended._replace(**{n: value for n, value in asked.items() if value is not None})


@dataclass(frozen=True, slots=True)
class StepTiming:
    """Where the time of one step went.

    Parameters:
        waited_secs: From ``send`` to the start of the computation.
        compute_secs: The computation itself, for the whole batch.
    """

    waited_secs: float
    compute_secs: float


@dataclass(frozen=True, slots=True)
class Said:
    """What became of words that were put into the agent's mouth.

    Parameters:
        utterance_id: The number that ``say`` gave.
        spoken: The words that were spoken.
        unspoken: The words that were dropped: the user barged in, or others cut in. Empty if all
            was said.
    """

    utterance_id: int
    spoken: str
    unspoken: str


@dataclass(frozen=True, slots=True)
class Step:
    """The agent's side of one step.

    Parameters:
        index: The step of the user's audio that this one answers, counted from 0. The agent's
            audio of step ``i`` can be heard from second ``(i + 1) * STEP_SECS`` on.
        pcm: Agent audio, float32 in [-1, 1], shape ``(STEP_SAMPLES,)``, 24 kHz. Silent in the
            first step, when the acoustic delay has not passed yet.
        text_token: Monologue token of the step; :data:`TEXT_PADDING` when there is none.
        text_piece: The token's SentencePiece piece (``▁`` starts a word, ``<0xE2>`` is one byte),
            or ``None`` for padding and control tokens.
        timing: Where the time went.
        utterance_id: The utterance of ``say`` that the piece belongs to, or ``None``.
        said: Utterances of ``say`` that came to their end.
        tokens: All of the step, int32, shape ``(17,)``: monologue, agent's codebooks, user's. For
            a :class:`~pipecat_duplex.history.HistoryKeeper`. ``None`` where they are not known.
    """

    index: int
    pcm: np.ndarray
    text_token: int
    text_piece: str | None
    timing: StepTiming
    utterance_id: int | None = None
    said: tuple[Said, ...] = ()
    tokens: np.ndarray | None = None


class DuplexSession(Protocol):
    """One conversation with the model."""

    @property
    def id(self) -> str:
        """A name for logs and error messages."""
        ...

    @property
    def memory(self) -> "Memory | None":
        """What a history of this session is of use to; ``None`` if steps come without tokens."""
        ...

    @property
    def secs_left(self) -> float | None:
        """How long the session still goes on; None if nothing is known to end it."""
        ...

    def send(self, pcm: np.ndarray) -> int:
        """Give the model the next step of the user's audio. Never waits for the model.

        Args:
            pcm: Float32, shape ``(STEP_SAMPLES,)``, in [-1, 1], 24 kHz.

        Returns:
            The index of the step; the :class:`Step` that answers it carries the same one.

        Raises:
            InvalidAudio: Wrong shape or type; the session is not touched.
            SessionEnded: The session is closed or has failed.
        """
        ...

    def steps(self) -> AsyncIterator[Step]:
        """Iterate over the agent's steps, one for each ``send``, in order.

        Ends after ``close``. One consumer at a time.

        Raises:
            SessionEnded: The session failed or reached its limit.
        """
        ...

    async def say(self, text: str, *, cut_in: bool = False) -> int:
        """Let the agent speak these words, in its own voice.

        They are spoken once the agent has come to the end of its own utterance, and of those that
        were queued before. When the user barges in and the model pauses, the rest is dropped:
        :attr:`Step.said` tells what was spoken and what was not.

        Args:
            text: What to say.
            cut_in: Do not wait: what is being said or queued is dropped, and the words begin where
                the agent would begin its next one.

        Returns:
            The utterance's number, from 1, as in :attr:`Step.utterance_id`.

        Raises:
            CannotSay: The model does not have these words, or its server cannot do this.
            SessionEnded: The session is over.
        """
        ...

    async def restore(self, history: "History") -> None:
        """Go on with a conversation that was held elsewhere. Before the first ``send``, and once.

        Args:
            history: What was said there.

        Raises:
            InvalidHistory: It is damaged, or was made with another checkpoint.
            DuplexError: The session has begun already, or its server cannot do this.
            SessionEnded: The session is over.
        """
        ...

    async def hush(self) -> None:
        """Drop what :meth:`say` has not spoken yet. The model's own words are its own.

        Raises:
            SessionEnded: The session is over.
        """
        ...

    async def close(self) -> None:
        """Leave the conversation and free its slot. May be called any number of times."""
        ...


class DuplexBackend(Protocol):
    """Where sessions come from: an engine in this process, or a server elsewhere."""

    async def open(self, config: SessionConfig) -> DuplexSession:
        """Begin a conversation.

        Raises:
            AtCapacity: No slot is free; raised at once.
            DuplexError: The backend cannot serve the config, or is closed.
        """
        ...

    async def close(self) -> None:
        """End every session and free the model. May be called any number of times."""
        ...
