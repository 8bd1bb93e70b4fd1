"""The one contract between the conversation and the model, wherever the model runs.

A *session* is one conversation. It takes the user's audio one step (80 ms) at a time and gives
one :class:`Step` of the agent's audio and monologue back for each. In process, over a socket or on
a cluster, the service sees the same object.
"""

from collections.abc import AsyncIterable, AsyncIterator
from typing import NamedTuple, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from pipecat_duplex.session.errors import DuplexError
from pipecat_duplex.session.history import History, ResumeKey
from pipecat_duplex.session.step import CanSay, Step


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


MAX_TOP_K = 1_000_000
"""Largest top-k that may be asked for: more than any vocabulary has tokens."""

MAX_SECS = 1e9
"""Longest limit of a session that may be asked for: 31 years."""

MOSHI_SAMPLING = Sampling(0.7, 25, 0.8, 250)
"""Moshi's published settings: the defaults of ``moshi.models.lm.LMGen``."""


class SessionConfig(BaseModel):
    """What one conversation asks of the model.

    A sampling field that is ``None`` takes the checkpoint's value, or the value published with
    Moshi (:data:`MOSHI_SAMPLING`) if the checkpoint has none. A temperature of 0 is greedy: the
    most likely token is taken, and the seed has no effect.

    Parameters:
        text_temperature: Sampling temperature of the monologue.
        text_top_k: The monologue samples among this many most likely tokens.
        audio_temperature: Sampling temperature of the agent's audio codebooks.
        audio_top_k: Each codebook samples among this many most likely entries.
        seed: Makes the conversation repeatable. ``None`` draws a new one.
        max_secs: The session ends, with a reason, after this much audio. ``None`` is no limit.
        restores: A history follows, by :meth:`DuplexSession.restore`: the persona is taken up with
            it, and not before.
        patience: How many times as long as usual a server may take to take the history up.
        text_prompt: Who the agent is, for models that were trained to take a role.
        voice_prompt: The agent's voice, by its key among those that the engine was given.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    text_temperature: float | None = Field(default=None, ge=0, le=10)
    text_top_k: int | None = Field(default=None, ge=1, le=MAX_TOP_K)
    audio_temperature: float | None = Field(default=None, ge=0, le=10)
    audio_top_k: int | None = Field(default=None, ge=1, le=MAX_TOP_K)
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    max_secs: float | None = Field(default=None, gt=0, le=MAX_SECS)
    text_prompt: str | None = Field(default=None, max_length=8000)
    voice_prompt: str | None = Field(default=None, max_length=200)
    restores: bool = False
    patience: float = Field(default=1.0, ge=1)

    @field_validator("text_prompt", "voice_prompt")
    @classmethod
    def _check_text(cls, text: str | None) -> str | None:
        """Refuse text that no encoding has: half of a surrogate pair stands for no character."""
        if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("it holds half of a surrogate pair, which is no character")
        return text

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


class DuplexSession(Protocol):
    """One conversation with the model."""

    @property
    def id(self) -> str:
        """A name for logs and error messages."""
        ...

    @property
    def config(self) -> SessionConfig:
        """The conversation's config; fields that it left open hold the values in use, if known."""
        ...

    @property
    def memory(self) -> ResumeKey | None:
        """Identifies which sessions can resume this one; ``None`` if steps carry no tokens."""
        ...

    @property
    def hearing_delay_steps(self) -> int | None:
        """Steps by which :attr:`Step.heard` is behind the voice; None if nobody tells words."""
        return None

    @property
    def secs_left(self) -> float | None:
        """Seconds until the session ends; None if no end is known."""
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

    async def say(
        self, text: str | AsyncIterable[str], *, cut_in: bool = False, more: bool = False
    ) -> int:
        """Let the agent speak these words, in its own voice.

        They are spoken when the agent has finished its own utterance and the words that were
        queued before. When the user barges in and the model pauses, the rest is dropped:
        :attr:`Step.said` tells which words were spoken.

        With ``more``, or a stream, the agent begins with the first words while later ones are still
        to come. It pauses when it has said all words so far, and goes on with the next word.
        Words that the model lacks are left out of such a text: :attr:`Said.unsayable`.

        Args:
            text: What to say. A stream gives it in pieces, cut anywhere.
            cut_in: Do not wait. Words that are being said or queued are dropped, and the new words
                begin where the agent would begin its next word.
            more: More follows, by :meth:`say_more`. The text may be cut anywhere, or empty.

        Returns:
            The utterance's number, from 1, as in :attr:`Step.utterance_id`.

        Raises:
            CannotSay: The model does not have these words, or its server cannot do this.
            SessionEnded: The session is over.
        """
        ...

    async def say_more(self, utterance_id: int, text: str, *, more: bool = True) -> None:
        """Add to an utterance that was begun with ``more``.

        A word is spoken once a space or the end follows it. If the utterance has already ended,
        because the user barged in, the text is dropped.

        Args:
            utterance_id: Its number.
            text: What follows, cut anywhere.
            more: Whether still more follows; the last call says False.

        Raises:
            CannotSay: Its server cannot do this.
            SessionEnded: The session is over.
        """
        ...

    async def can_say(self, text: str) -> CanSay:
        """Tell whether the model has the words of a text, without saying it.

        Args:
            text: The text.

        Returns:
            True if :meth:`say` would take it; otherwise the words that the model lacks, or why.

        Raises:
            SessionEnded: The session is over.
        """
        ...

    async def hold(self, held: bool = True) -> None:
        """Hold the model's own words back, until it is called with ``False``.

        The agent only speaks given words. :attr:`Step.wish` tells where the model would have begun
        to speak.

        Args:
            held: Whether they are held back, from the next step on.

        Raises:
            CannotSay: Its server cannot do this.
            SessionEnded: The session is over.
        """
        ...

    async def restore(self, history: History) -> None:
        """Go on with a conversation that was held elsewhere. Before the first ``send``, and once.

        Args:
            history: What was said there.

        Raises:
            InvalidHistory: It is damaged, or was made with another checkpoint.
            DuplexError: The session has begun already, or its server cannot do this.
            SessionEnded: The session is over.
        """
        ...

    def follow(self, pcm: np.ndarray, tokens: np.ndarray) -> int:
        """Take a step that was taken elsewhere, as part of the conversation that was restored.

        After :meth:`restore` and before the first :meth:`send`. It is answered as any other, by the
        step that was given elsewhere. It may come faster than real time.

        Args:
            pcm: The user's audio, as in :meth:`send`.
            tokens: :attr:`Step.tokens` of the step, int, shape ``(17,)``.

        Returns:
            The index of the step.

        Raises:
            InvalidHistory: These are no tokens of the checkpoint.
            DuplexError: The session cannot do this, or not any more.
            SessionEnded: The session is over.
        """
        raise DuplexError(f"session {self.id} takes no steps that were taken elsewhere")

    async def hush(self) -> None:
        """Drop the rest of all given words. The model's own words go on.

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
