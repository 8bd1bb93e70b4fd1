"""One conversation with the engine, as seen from asyncio."""

import asyncio
import math
import secrets
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import NamedTuple

import numpy as np
from loguru import logger

from pipecat_duplex.conversation.echo import EchoSuppressor
from pipecat_duplex.engine.model import Loaded
from pipecat_duplex.engine.persona import Persona
from pipecat_duplex.engine.preparation import Preparation
from pipecat_duplex.engine.share import Allowance, LoopShare
from pipecat_duplex.engine.speech import MAX_WAITING, Speaker, Utterance
from pipecat_duplex.engine.vocabulary import Spelling, SpellsWords
from pipecat_duplex.engine.voice import Voice
from pipecat_duplex.session import (
    STEP_SECS,
    CannotSay,
    CanSay,
    DuplexError,
    DuplexSession,
    SessionConfig,
    SessionEnded,
    Step,
    check_step_audio,
)
from pipecat_duplex.session.history import CODEBOOKS, History, ResumeKey, check_tokens
from pipecat_duplex.session.inbox import StepInbox
from pipecat_duplex.session.saying import MAX_SAY_BYTES, check_words
from pipecat_duplex.session.streams import TextStreams, WordCutter

SAY_BURST_CHARS = MAX_SAY_BYTES
"""Characters that a session may ask to be said at once: two hours of speech."""

SAY_CHARS_PER_SEC = 1000
"""Characters a second that it may go on with: fifty times as many as anybody speaks."""


class Frame(NamedTuple):
    """One step of the user's audio, waiting for the engine."""

    step_index: int
    pcm: np.ndarray
    sent_at_secs: float
    tokens: np.ndarray | None = None  # of monologue and agent, where they are known


class EngineSession(DuplexSession):
    """A conversation in one slot of an engine.

    Belongs to the asyncio loop in which it was opened: call its methods there. The engine's thread
    only takes frames out of ``waiting``, takes the agent's voice out of them with ``echo``, asks
    ``speaker`` for words, and posts steps back to that loop.
    """

    def __init__(
        self,
        config: SessionConfig,
        loaded: Loaded,
        *,
        share: LoopShare,
        wake_engine: Callable[[], None],
        leave_slot: Callable[["EngineSession"], None],
        suppress_echo: bool = True,
        keeps_persona: bool = False,
        voice: Voice | None = None,
    ):
        """Initialize a session. Use ``Engine.open`` instead.

        Args:
            config: What the conversation asks of the model. Without a seed, one is drawn.
            loaded: The model that it is held with.
            share: In which texts are spelled, beside those of other sessions.
            wake_engine: Called after a frame was put into ``waiting``.
            leave_slot: Called once, when the session is over.
            suppress_echo: Keep the agent's own voice from what the model hears.
            keeps_persona: Whether the model keeps a persona however long the session is.
            voice: Speaks given words in the model's place.
        """
        if config.seed is None:
            config = config.model_copy(update={"seed": secrets.randbits(63)})
        self._config = config
        self.loop = asyncio.get_running_loop()
        self.waiting: deque[Frame] = deque()
        self.echo = EchoSuppressor() if suppress_echo else None
        self.preparation: Preparation | None = None
        self._persona: Persona | None = None
        self._keeps_persona = keeps_persona
        self._late_persona: Persona | None = None
        self._restored = False
        self._follows = False  # whether steps that were taken elsewhere may still come
        self._loaded = loaded
        self._utterances = 0
        self._share = share
        self._sayable = Allowance(SAY_CHARS_PER_SEC, SAY_BURST_CHARS)
        self._spelling = asyncio.Lock()
        self._cutters: dict[int, WordCutter] = {}
        self._streams = TextStreams()
        self._id = secrets.token_hex(4)
        self.speaker = Speaker() if voice is None else voice.speaker(self._id)
        self._words: SpellsWords = loaded.vocabulary if voice is None else voice.vocabulary
        self._wake_engine = wake_engine
        self._leave_slot = leave_slot
        self._max_steps = _steps_in(config.max_secs)
        self._sent = 0
        self._inbox = StepInbox(self._id, self.end)

    @property
    def id(self) -> str:
        """A name for logs and error messages."""
        return self._id

    @property
    def config(self) -> SessionConfig:
        """What the conversation asks of the model, with what the checkpoint recommends."""
        return self._config

    @property
    def is_preparing(self) -> bool:
        """Whether the engine has still to prepare the slot before the first step."""
        preparation = self.preparation
        return preparation is not None and not preparation.finished

    @property
    def memory(self) -> ResumeKey:
        """Identifies which sessions can resume this one."""
        summary = self._loaded.summary
        return ResumeKey(summary.fingerprint, summary.context_steps)

    @property
    def hearing_delay_steps(self) -> int | None:
        """Steps by which :attr:`Step.heard` is behind the voice; None if nobody tells words."""
        hearing = self._loaded.summary.hearing
        return None if hearing is None else hearing.delay_steps

    @property
    def secs_left(self) -> float | None:
        """Audio that the session still takes; None is no limit."""
        if self._max_steps is None:
            return None
        return (self._max_steps - self._sent) * STEP_SECS

    @property
    def steps_sent(self) -> int:
        """Number of frames accepted so far."""
        return self._sent

    def send(self, pcm: np.ndarray) -> int:
        """Give the model the next step of the user's audio. Never waits for the model.

        Args:
            pcm: Float32, shape ``(STEP_SAMPLES,)``, in [-1, 1], 24 kHz. It is copied.

        Returns:
            The index of the step; the :class:`Step` that answers it carries the same one.

        Raises:
            InvalidAudio: Wrong shape or type, or not finite; the session is not touched.
            SessionEnded: The session is closed, has failed or has reached its limit, or too many
                steps are pending.
        """
        check_step_audio(pcm)
        self._follows = False
        return self._queue(pcm)

    def follow(self, pcm: np.ndarray, tokens: np.ndarray) -> int:
        """Take a step that was taken elsewhere.

        See :class:`~pipecat_duplex.session.DuplexSession`.
        """
        check_step_audio(pcm)
        if not self._follows:
            raise DuplexError(
                "steps that were taken elsewhere come after a history, and before others"
            )
        summary = self._loaded.summary
        check_tokens(tokens, summary.text_tokens, summary.audio_tokens)
        return self._queue(pcm, tokens[: 1 + CODEBOOKS].astype(np.int64))

    def _queue(self, pcm: np.ndarray, tokens: np.ndarray | None = None) -> int:
        self._inbox.check_open()
        if self._sent == self._max_steps:
            raise SessionEnded(self._id, self._limit_reason())
        self._inbox.accept(self._sent)
        if self._late_persona is not None:
            self._prepare_late(self._late_persona)
        index = self._sent
        self._sent += 1
        self.waiting.append(Frame(index, pcm.copy(), time.perf_counter(), tokens))
        self._wake_engine()
        return index

    def steps(self) -> AsyncIterator[Step]:
        """Iterate over the agent's steps, one for each ``send``, in order.

        See :meth:`~pipecat_duplex.session.inbox.StepInbox.steps`.
        """
        return self._inbox.steps()

    async def prepare(self, persona: Persona | None, history: History | None = None) -> None:
        """Let the model take up the session's persona, and what was said elsewhere.

        Args:
            persona: Who the agent is.
            history: What was said elsewhere.

        Raises:
            DuplexError: The session has begun already.
            SessionEnded: The session is over.
        """
        self._inbox.check_open()
        if self._sent or self.preparation is not None or self._restored:
            raise DuplexError("a history is taken up before the first step, and once")
        await self._prepare(persona, history)
        if history is not None:
            self._follows = True
            self.speaker.go_on()

    def be_late(self, persona: Persona) -> None:
        """Take up a persona with the history, or with the first step if no history comes."""
        self._persona = self._late_persona = persona

    def _prepare(self, persona: Persona | None, history: History | None) -> "asyncio.Future[None]":
        self._persona, self._late_persona = persona, None
        self._restored = history is not None
        done: asyncio.Future[None] = self.loop.create_future()
        self.preparation = Preparation(self._id, self.config, persona, history, done)
        self._wake_engine()
        return done

    def _prepare_late(self, persona: Persona) -> None:
        def finish(done: "asyncio.Future[None]") -> None:
            error = None if done.cancelled() else done.exception()
            if error is not None:
                self.end(str(error))

        self._prepare(persona, None).add_done_callback(finish)

    async def restore(self, history: History) -> None:
        """Go on with a conversation; see :class:`~pipecat_duplex.session.DuplexSession`.

        Of a history that is longer than the model's context, the last part is taken.
        """
        self._inbox.check_open()
        summary = self._loaded.summary
        history.check(summary.fingerprint, summary.text_tokens, summary.audio_tokens)
        await self.prepare(self._persona, history.last(summary.context_steps))

    def finish_preparation(self, preparation: Preparation) -> None:
        """Take note that the engine has prepared the slot, or could not."""
        if preparation is not self.preparation:
            return
        self.preparation = None
        if preparation.done.done():  # the caller that waited for it was cancelled
            return
        if preparation.error is None:
            preparation.done.set_result(None)
            self._wake_engine()
        else:
            preparation.done.set_exception(preparation.error)

    async def say(
        self, text: str | AsyncIterable[str], *, cut_in: bool = False, more: bool = False
    ) -> int:
        """Let the agent speak these words; see :class:`~pipecat_duplex.session.DuplexSession`.

        A long text is spelled beside the steps of others, which takes a moment. A session may say
        :data:`SAY_BURST_CHARS` characters at once, and :data:`SAY_CHARS_PER_SEC` a second.
        """
        if not isinstance(text, str):
            return await self._streams.say(self, text, cut_in=cut_in)
        self._inbox.check_open()
        if self.speaker.waiting >= MAX_WAITING and not cut_in:
            raise CannotSay(f"{MAX_WAITING} utterances are waiting already")
        if self.speaker.untold >= MAX_WAITING:
            raise CannotSay(f"{MAX_WAITING} utterances have ended since the last step was taken")
        self._allow(text)
        async with self._spelling:  # in the order of the calls
            words = () if more else (await self._spell(text)).all_words()
            self._inbox.check_open()
            self._utterances = number = self._utterances + 1
            self.speaker.say(Utterance(number, words, more), cut_in=cut_in)
            if more:
                self._cutters[number] = WordCutter()
                await self._add(number, text, more=True)
            return number

    async def can_say(self, text: str) -> CanSay:
        """Tell whether it has the words; see :class:`~pipecat_duplex.session.DuplexSession`."""
        self._inbox.check_open()
        try:
            self._allow(text)
            (await self._spell(text)).all_words()
        except CannotSay as e:
            return CanSay(e.lacks, str(e))
        return CanSay()

    async def say_more(self, utterance_id: int, text: str, *, more: bool = True) -> None:
        """Add to an utterance; see :class:`~pipecat_duplex.session.DuplexSession`."""
        self._inbox.check_open()
        if utterance_id not in self._cutters:
            return
        try:
            self._allow(text)
            async with self._spelling:
                await self._add(utterance_id, text, more=more)
        except CannotSay:
            self._cutters.pop(utterance_id, None)
            self.speaker.say_more(utterance_id, (), more=False)
            raise

    async def _add(self, utterance_id: int, text: str, *, more: bool) -> None:
        cutter = self._cutters.get(utterance_id)
        if cutter is None:
            return
        whole = cutter.push(text) + ("" if more else cutter.end())
        if more and not whole:
            return
        spelling = await self._spell(whole)
        goes_on = self.speaker.say_more(
            utterance_id,
            tuple(spelling.words),
            more=more,
            unsayable=tuple(spelling.unsayable),
        )
        if not (goes_on and more):
            self._cutters.pop(utterance_id, None)

    def _allow(self, text: str) -> None:
        """Raise if this is no text, or a session asks for more than anybody can speak."""
        check_words(text)
        if not self._sayable.spend(len(text), time.monotonic()):
            raise CannotSay(
                f"{len(text)} characters come too soon: a session may say {SAY_BURST_CHARS} at "
                f"once, and {SAY_CHARS_PER_SEC} a second from then on"
            )

    async def _spell(self, text: str) -> Spelling:
        spelling = Spelling(self._words, text)
        await self._share.run(spelling.parts())
        return spelling

    async def hold(self, held: bool = True) -> None:
        """Hold the model's own words back; see :class:`~pipecat_duplex.session.DuplexSession`."""
        self._inbox.check_open()
        self.speaker.hold(held)

    async def hush(self) -> None:
        """Drop the rest of all given words."""
        self._inbox.check_open()
        async with self._spelling:
            self.speaker.hush()

    async def close(self) -> None:
        """Leave the conversation and free its slot. May be called any number of times."""
        if self._inbox.close():
            self._leave()

    def deliver(self, step: Step) -> None:
        """Take a step from the engine."""
        for said in step.said:
            self._cutters.pop(said.utterance_id, None)
        self._inbox.put(step)
        self._tell_of_persona(step.index + 1)
        if step.index + 1 == self._max_steps:
            self.end(self._limit_reason())

    def end(self, reason: str) -> None:
        """End the session for a reason other than ``close``; the first reason counts."""
        if self._inbox.end(reason):
            self._leave()

    def _leave(self) -> None:
        self._streams.close()
        self.speaker.close()
        if self.preparation is not None:
            self.preparation.error = SessionEnded(self._id, "it ended before it began")
            self.finish_preparation(self.preparation)
        self._leave_slot(self)
        self.waiting.clear()

    def _tell_of_persona(self, steps: int) -> None:
        """Say once that the model begins to forget the persona, if it does."""
        if self._persona is None or self._keeps_persona:
            return
        if steps == self._loaded.summary.context_steps - self._persona.frames:
            logger.warning(
                f"Session {self._id} has filled what the model looks back on, and its persona is "
                "forgotten from now on. long_calls='rebuild' keeps it (docs/long-calls.md)"
            )

    def _limit_reason(self) -> str:
        return f"it reached its limit of {self.config.max_secs:g} s"


def _steps_in(max_secs: float | None) -> int | None:
    """The number of steps that hold this much audio, rounded up."""
    if max_secs is None:
        return None
    return max(1, math.ceil(max_secs / STEP_SECS - 1e-6))
