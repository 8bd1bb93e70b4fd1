"""A conversation that survives its session: it goes on in another one, elsewhere if need be."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from loguru import logger

from pipecat_duplex.session.contract import DuplexBackend, DuplexSession, SessionConfig
from pipecat_duplex.session.doubt import Doubt
from pipecat_duplex.session.errors import DuplexError, SessionEnded
from pipecat_duplex.session.fair_clock import FairClock
from pipecat_duplex.session.heard import HeardWords, Shift
from pipecat_duplex.session.history import History, HistoryKeeper, ResumeKey
from pipecat_duplex.session.inbox import StepInbox
from pipecat_duplex.session.outlook import outlook_of
from pipecat_duplex.session.step import (
    STEP_SAMPLES,
    STEP_SECS,
    TEXT_PADDING,
    CanSay,
    Step,
    StepTiming,
    check_step_audio,
)
from pipecat_duplex.session.streams import TextStreams
from pipecat_duplex.session.successor import Successor, Taken, hold_back
from pipecat_duplex.session.unheard import UnheardAudio
from pipecat_duplex.session.words import Words

NO_TIME = StepTiming(0.0, 0.0)

DELAY_NOTICE_SECS = 1.5
"""A move that takes longer is told as delayed, even if no try has failed so far."""

LOOK_SECS = 0.05
"""How often a session is looked at, whether it is about to end."""

MAX_LOOK_SECS = 0.15
"""Between two looks, more time than this went by because this process stood still."""

HAND_OVER_SECS = 1.0
"""How long steps wait for a successor that is about to be level."""

MAX_BEHIND = 2
"""Steps that a successor may be behind when nobody listens to the session before it any more."""

MAX_PAUSE_STEPS = 25
"""Steps that a successor that is ready waits for a pause between two words."""

MAX_BARREN = 8
"""Sessions in a row that may fail at once, before the conversation is at fault."""

STEADY_STEPS = 12
"""A session that has answered so many steps did not fail at once."""


@dataclass(frozen=True, slots=True)
class MoveNews:
    """Who is told of a move.

    Parameters:
        moving: Called at once, with the reason.
        delayed: Called once if the move is not done at the first try, with what is in its way.
        moved: Called when the conversation goes on, with the seconds in which nobody listened.
    """

    moving: Callable[[str], Awaitable[None]]
    delayed: Callable[[str], Awaitable[None]]
    moved: Callable[[float], Awaitable[None]]


class Leaving(NamedTuple):
    """That it is time to leave a session.

    Parameters:
        reason: Why.
        smooth: Whether the successor is about to be level, so that every step waits for it.
    """

    reason: str
    smooth: bool = False


async def restore_or_close(session: DuplexSession, history: History) -> None:
    """Restore a session. If that fails, close it, so that its slot is free.

    Args:
        session: A session before its first step.
        history: What it goes on with.

    Raises:
        DuplexError: The session cannot go on with it, and is closed.
    """
    try:
        await session.restore(history)
    except BaseException:
        await session.close()
        raise


class ContinuedSession(DuplexSession):
    """A session that is moved when it fails, is drained or loses its server.

    A server that shuts down says so before. The conversation then goes on there until another
    session is where it is, and changes over between two steps: nothing is lost.

    Of a server that has died nothing is left. Meanwhile the agent is silent, for about a second:
    steps of that time are answered with silence at once. The user's audio of that time is kept, and
    the next model hears it first. Then the agent continues where it stopped, and so do given words.
    For a server that is not heard of, another session is prepared; it goes on if it is ready first.
    """

    def __init__(
        self,
        backend: DuplexBackend,
        config: SessionConfig,
        session: DuplexSession,
        memory: ResumeKey,
        *,
        give_up_secs: float,
        history: History | None = None,
        news: MoveNews | None = None,
        monotonic_secs: Callable[[], float] = time.monotonic,
    ):
        """Initialize around an open session.

        Args:
            backend: Where other sessions come from.
            config: What the conversation asks of the model.
            session: The session, fresh or just restored.
            memory: Its memory.
            give_up_secs: How long another one is tried for.
            history: What it was restored from.
            news: Who is told of its moves.
            monotonic_secs: The time, for tests.
        """
        self._news = news
        self._delay_told = False
        self._backend = backend
        self._config = config
        self._session: DuplexSession | None = session
        self._steps = session.steps()
        self._keeper = HistoryKeeper(memory, history)
        self._give_up_secs = give_up_secs
        self._inbox = StepInbox(session.id)
        self._id = session.id
        self._sent = 0
        self._answered = 0
        self._first = 0
        self._unheard = UnheardAudio()
        self._heard_from = 0  # steps of the session before this one belong into the gap
        self._heard_steps = 0
        self._gap_from = 0  # the first step of the last gap
        self._barren = 0
        self._leaving: set[asyncio.Task[None]] = set()
        self._held = False
        self._heard = HeardWords()
        self._hearing_delay_steps = _hearing_delay_steps(session)
        self._words = Words(self._inbox, self._session_for_words)
        self._streams = TextStreams()
        self._successor: Successor | None = None
        self._doubted = False  # whether the successor is there only in case
        self._waits = False  # whether steps wait for a successor that is about to be level
        self._leave_reason = ""
        self._ready_steps = 0
        self._clock = FairClock(monotonic_secs, max_tick_secs=MAX_LOOK_SECS)
        self._doubt = Doubt()
        self.moves = 0
        self._task = asyncio.create_task(self._run(), name=f"{self._id}-continued")

    @property
    def id(self) -> str:
        """The name of the session that it began with."""
        return self._id

    @property
    def config(self) -> SessionConfig:
        """What the conversation asks of the model."""
        return self._config

    @property
    def memory(self) -> ResumeKey:
        """Identifies which sessions can resume this one."""
        return self._keeper.memory

    @property
    def hearing_delay_steps(self) -> int | None:
        """Steps by which the user's words are behind the voice, in the session of the moment."""
        return self._hearing_delay_steps

    @property
    def secs_left(self) -> float | None:
        """Seconds until the conversation ends; None if no end is known."""
        if self._config.max_secs is not None:
            return self._config.max_secs - self._sent * STEP_SECS
        if self._session is None:
            return None
        is_going = bool(outlook_of(self._session).leave)
        if is_going and (self._successor is None or not self._successor.has_failed):
            return None  # The session ends, the conversation does not.
        return self._session.secs_left

    def history(self) -> History | None:
        """Return the state from which the conversation can be rebuilt, also after its end."""
        return self._keeper.history()

    def send(self, pcm: np.ndarray) -> int:
        """Give the model the next step of the user's audio, or nobody while it moves."""
        check_step_audio(pcm)
        self._inbox.accept(self._sent)
        index = self._sent
        self._sent += 1
        if self._session is not None:
            self._doubt.send(self._clock.now_secs())
            try:
                self._session.send(pcm)
            except SessionEnded:
                pass  # Answered as soon as the end is noticed.
        if self._session is not None or self._waits:
            self._keeper.send(pcm.copy())
        else:
            self._unheard.add(pcm.copy())
            self._answer_with_silence()
        return index

    def steps(self) -> AsyncIterator[Step]:
        """Iterate over the agent's steps, one for each ``send``, in order."""
        return self._inbox.steps()

    #
    # words
    #

    async def say(
        self, text: str | AsyncIterable[str], *, cut_in: bool = False, more: bool = False
    ) -> int:
        """Let the agent speak these words; while it moves they wait."""
        if not isinstance(text, str):
            return await self._streams.say(self, text, cut_in=cut_in)
        return await self._words.say(text, cut_in=cut_in, more=more)

    async def can_say(self, text: str) -> CanSay:
        """Tell whether the model has the words; while it moves, this waits for the next session."""
        return await self._words.can_say(text)

    async def say_more(self, utterance_id: int, text: str, *, more: bool = True) -> None:
        """Add to an utterance; while it moves, it waits."""
        await self._words.say_more(utterance_id, text, more=more)

    async def hold(self, held: bool = True) -> None:
        """Keep the model's own words back, also where it moves to."""
        self._inbox.check_open()
        if self._session is not None:
            try:
                await self._session.hold(held)
            except SessionEnded:
                self._inbox.check_open()
        self._held = held

    async def hush(self) -> None:
        """Drop the rest of all given words."""
        await self._words.hush()

    #
    # the end
    #

    async def restore(self, history: History) -> None:
        """Refuse: a session is restored before it is continued.

        Raises:
            DuplexError: Always.
        """
        raise DuplexError("a history is taken up before the first step, and once")

    async def close(self) -> None:
        """Leave the conversation. May be called any number of times."""
        self._inbox.close()
        self._streams.close()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        if self._successor is not None:
            await self._successor.close()
        await asyncio.gather(*self._leaving, return_exceptions=True)

    #
    # the session of the moment
    #

    async def _run(self) -> None:
        try:
            while self._session is not None:
                leaving = await self._stay(self._session)
                if leaving is None:
                    return
                await self._move(self._session, leaving)
        except Exception as error:
            logger.opt(exception=error).error(f"Session {self._id} failed")
            self._inbox.end(f"it failed: {error}")

    async def _stay(self, session: DuplexSession) -> Leaving | None:
        """Take a session's steps until it is to be left; None if it was closed."""
        hearing = asyncio.create_task(self._hear(session))
        looking = asyncio.create_task(self._look_out(session))
        try:
            await asyncio.wait([hearing, looking], return_when=asyncio.FIRST_COMPLETED)
            return hearing.result() if hearing.done() else looking.result()
        finally:
            hearing.cancel()
            looking.cancel()
            await asyncio.gather(hearing, looking, return_exceptions=True)

    async def _hear(self, session: DuplexSession) -> Leaving | None:
        """Take the steps of a session until it ends, or can hand over."""
        try:
            async for step in self._steps:
                self._take(step)
                if step.index + 1 == self._heard_from:
                    self._heard_from = 0
                    await self._words.say_again(session)
                if self._can_hand_over(step):
                    return Leaving(self._leave_reason, smooth=True)
        except SessionEnded as error:
            return Leaving(error.reason)
        return None

    def _take(self, step: Step) -> None:
        pcm = self._keeper.take(step)
        self._heard_steps += 1
        self._doubt.hear(self._clock.now_secs(), waits=bool(self._keeper.unanswered))
        self._tell_successor(pcm, step)
        self._heard.hear(step.heard)
        if step.index < self._heard_from:
            return
        number, said = self._words.utterances.hear(step)
        self._answered += 1
        index = self._first + step.index
        heard = self._heard.take()
        self._inbox.put(replace(step, index=index, utterance_id=number, said=said, heard=heard))

    def _tell_successor(self, pcm: np.ndarray | None, step: Step) -> None:
        if self._successor is None:
            return
        if self._doubted:  # For nothing.
            self._doubt.raise_caution(self._clock.now_secs())
            self._drop_successor()
        elif pcm is not None and step.tokens is not None:
            self._successor.add(pcm, step.tokens)

    def _can_hand_over(self, step: Step) -> bool:
        """Whether the successor is close behind, and no word is in the middle."""
        successor = self._successor
        if successor is None or not successor.is_restored or step.index < self._heard_from:
            return False
        if successor.behind > MAX_BEHIND:
            return False
        self._ready_steps += 1
        return step.text_token == TEXT_PADDING or self._ready_steps > MAX_PAUSE_STEPS

    async def _look_out(self, session: DuplexSession) -> Leaving:
        """Prepare for the end of a session; return when another is ready and this one is silent."""
        while True:
            await asyncio.sleep(LOOK_SECS)
            self._clock.tick()
            outlook, now_secs = outlook_of(session), self._clock.now_secs()
            doubt = self._doubt.why(outlook.silent_secs, now_secs)
            successor = self._successor
            if successor is None and (doubt or outlook.leave) and self.history() is not None:
                logger.info(f"Session {self._id}: {outlook.leave or doubt}; another is prepared")
                self._doubted = not outlook.leave
                self._leave_reason = outlook.leave
                self._successor = self._seek()
            elif successor is not None and doubt and successor.is_level:
                return Leaving(doubt)

    def _answer_with_silence(self) -> None:
        """Answer what was sent and will not be heard."""
        while self._answered < self._sent:
            pcm, said = np.zeros(STEP_SAMPLES, np.float32), self._words.utterances.take_ended()
            self._inbox.put(Step(self._answered, pcm, TEXT_PADDING, None, NO_TIME, said=said))
            self._answered += 1

    def _session_for_words(self) -> DuplexSession | None:
        """Return the session, unless it still hears what the user said to nobody."""
        return None if self._heard_from else self._session

    #
    # the next one
    #
    async def _move(self, session: DuplexSession, leaving: Leaving) -> None:
        """Go on in another session; end with a reason if there is none."""
        self._session = None
        self._words.utterances.take_back()
        self._waits = leaving.smooth
        if not leaving.smooth:
            self._open_gap()
        self._leave(session)
        started_secs = time.monotonic()
        logger.info(f"Session {self._id}: {leaving.reason}; it moves")
        if not self._may_go_on():
            self._drop_successor()
            self._inbox.end(leaving.reason)
            return
        self._delay_told = False
        waiting = f"{leaving.reason}; no other has answered yet"
        late = asyncio.create_task(self._tell_of_delay(waiting, DELAY_NOTICE_SECS))
        try:
            if self._news is not None:
                await self._news.moving(leaving.reason)
            fresh = await self._find_next()
        except DuplexError as problem:
            self._inbox.end(f"{leaving.reason}; it cannot go on elsewhere: {problem}")
            return
        finally:
            late.cancel()
        await self._go_on(fresh)
        secs = time.monotonic() - started_secs
        logger.info(f"Session {self._id} goes on as {fresh.session.id} after {secs:.2f} s")
        if self._news is not None:
            await self._news.moved(secs)

    def _may_go_on(self) -> bool:
        """Whether the conversation is neither at its limit nor at fault."""
        self._barren = self._barren + 1 if self._heard_steps < STEADY_STEPS else 0
        return not self._is_at_its_limit() and self._barren < MAX_BARREN

    def _open_gap(self) -> None:
        """From here on nobody listens, until another session does."""
        self._waits = False
        self._gap_from = self._answered
        self._unheard.add(*self._keeper.take_unanswered())
        self._answer_with_silence()

    async def _find_next(self) -> Taken:
        """Return the next session, as soon as it is where the conversation is."""
        successor = self._successor or self._seek()
        self._successor, self._doubted = successor, False
        successor.give_up_after(self._give_up_secs)
        if self._waits:
            try:
                async with asyncio.timeout(HAND_OVER_SECS):
                    await successor.level()
            except TimeoutError:
                self._open_gap()
        await successor.level()
        self._successor = None
        return successor.take()

    async def _go_on(self, fresh: Taken) -> None:
        """Let a session go on with what nobody has answered, then with what comes."""
        session = fresh.session
        self._steps = fresh.steps
        self._heard_steps = 0
        self._doubt.begin()
        smooth = self._waits
        if smooth:
            await self._words.say_again(session)
            self._first, waiting = self._answered - fresh.followed, self._keeper.unanswered
            self._heard.move(self._answered, [Shift(0, self._first)])
        else:
            unheard_from = self._sent - len(self._unheard)
            waiting = self._unheard.take_speech(self._keeper.audio)
            speech_from = unheard_from + self._unheard.left_out - fresh.followed
            self._first = self._sent - len(waiting) - fresh.followed
            shifts = [
                Shift(0, self._gap_from - fresh.followed),
                Shift(fresh.followed, speech_from),
                Shift(fresh.followed + len(waiting), self._first),
            ]
            self._heard.move(self._gap_from, shifts)
            self._heard_from = fresh.followed + len(waiting) if waiting else 0
            for pcm in waiting:
                self._keeper.send(pcm)
        self._hearing_delay_steps = _hearing_delay_steps(session)
        self._heard.hear(fresh.heard)
        self._session, self._waits = session, False
        self.moves += 1
        try:
            for pcm in waiting:
                self._doubt.send(self._clock.now_secs())
                session.send(pcm)
            if self._held != fresh.held:
                await hold_back(session, self._held)
        except SessionEnded:
            return  # Noticed by those who take its steps: it moves again.
        if not smooth and not waiting:
            await self._words.say_again(session)

    def _seek(self) -> Successor:
        self._ready_steps = 0
        return Successor(
            self._backend,
            self._rest_of_config,
            self.history,
            hold=lambda: self._held,
            leave=self._leave,
            problem=self._note_problem,
        )

    def _drop_successor(self) -> None:
        if self._successor is not None:
            self._successor.drop()
        self._successor, self._doubted = None, False

    def _leave(self, session: DuplexSession) -> None:
        """Close a session in the background: its server may be slow to say goodbye."""
        leaving = asyncio.create_task(session.close(), name=f"{self._id}-leaves-{session.id}")
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _note_problem(self, problem: DuplexError) -> None:
        logger.debug(f"Session {self._id}: no other yet: {problem}")
        if self._session is None:
            await self._tell_of_delay(str(problem), after_secs=0)

    async def _tell_of_delay(self, problem: str, after_secs: float) -> None:
        await asyncio.sleep(after_secs)
        if self._news is not None and not self._delay_told:
            self._delay_told = True
            await self._news.delayed(problem)

    def _rest_of_config(self) -> SessionConfig:
        if self._config.max_secs is None:
            return self._config
        left_steps = self._config.max_secs / STEP_SECS - self._answered + len(self._unheard)
        left_secs = max(1, left_steps) * STEP_SECS
        return self._config.model_copy(update={"max_secs": left_secs})

    def _is_at_its_limit(self) -> bool:
        max_secs = self._config.max_secs
        return max_secs is not None and self._answered * STEP_SECS > max_secs - 1e-6


def _hearing_delay_steps(session: DuplexSession) -> int | None:
    return getattr(session, "hearing_delay_steps", None)  # Not all backends' can hear.
