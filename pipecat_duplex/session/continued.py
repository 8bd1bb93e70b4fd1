"""A conversation that survives its session: it goes on in another one, elsewhere if need be."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

import numpy as np
from loguru import logger

from pipecat_duplex.session.contract import DuplexBackend, DuplexSession, SessionConfig
from pipecat_duplex.session.errors import DuplexError, SessionEnded
from pipecat_duplex.session.history import History, HistoryKeeper, ResumeKey
from pipecat_duplex.session.inbox import StepInbox
from pipecat_duplex.session.retry import Pauses, Retry
from pipecat_duplex.session.saying import Saying, Sayings, give
from pipecat_duplex.session.step import (
    STEP_SAMPLES,
    STEP_SECS,
    TEXT_PADDING,
    CanSay,
    Said,
    Step,
    StepTiming,
    check_step_audio,
)
from pipecat_duplex.session.streams import TextStreams
from pipecat_duplex.session.unheard import UnheardAudio

RETRY = Pauses(first_secs=0.1, max_secs=1.0)

TRY_SECS = 10.0
"""How long a session may take to be open and to have taken up the conversation."""

MAX_ANEW = 5
"""How often the time to give up is counted anew, after a try that had found a session."""

NO_TIME = StepTiming(0.0, 0.0)

ASK_AGAIN_SECS = 0.05
"""How often a conversation that moves is looked at for a question that waits."""

DELAY_NOTICE_SECS = 1.5
"""A move that takes longer is told as delayed, even if no try has failed so far."""


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

    A move takes about a second. Meanwhile the agent is silent: steps of that time are answered with
    silence at once. The user's audio of that time is kept, and the next model hears it first. Then
    the agent continues where it stopped, and so do given words.
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
        """
        self._news = news
        self._delay_told = False
        self._backend = backend
        self._config = config
        self._session: DuplexSession | None = session
        self._keeper = HistoryKeeper(memory, history)
        self._give_up_secs = give_up_secs
        self._inbox = StepInbox(session.id)
        self._id = session.id
        self._sent = 0
        self._answered = 0
        self._first = 0
        self._unheard = UnheardAudio()
        self._late_steps = 0  # of the session, whose sound belongs into the gap
        self._leaving: set[asyncio.Task[None]] = set()
        self._sayings = Sayings()
        self._numbers: dict[int, int] = {}
        self._utterances = 0
        self._waiting_words: list[tuple[int, Saying]] = []  # until it has moved
        self._giving_words = asyncio.Lock()
        self._streams = TextStreams()
        self._held = False
        self._ended_here: list[Said] = []  # told with the next step
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
    def secs_left(self) -> float | None:
        """Seconds until the conversation ends; None if no end is known."""
        if self._config.max_secs is not None:
            return self._config.max_secs - self._sent * STEP_SECS
        return None if self._session is None else self._session.secs_left

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
            try:
                self._session.send(pcm)
            except SessionEnded:
                pass  # Answered as soon as the end is noticed.
            self._keeper.send(pcm.copy())
        else:
            self._unheard.add(pcm.copy())
            self._answer_with_silence()
        return index

    def steps(self) -> AsyncIterator[Step]:
        """Iterate over the agent's steps, one for each ``send``, in order."""
        return self._inbox.steps()

    async def say(
        self, text: str | AsyncIterable[str], *, cut_in: bool = False, more: bool = False
    ) -> int:
        """Let the agent speak these words; while it moves they wait."""
        if not isinstance(text, str):
            return await self._streams.say(self, text, cut_in=cut_in)
        async with self._giving_words:
            self._inbox.check_open()
            saying = Saying(text, more=more)
            number = self._utterances + 1
            inner = await self._say_now(saying, cut_in=cut_in)
            if inner is None:
                if cut_in:
                    self._drop_waiting_words()
                self._waiting_words.append((number, saying))
            else:
                self._note_saying(inner, number, saying)
            self._utterances = number
            return number

    async def can_say(self, text: str) -> CanSay:
        """Tell whether the model has the words; while it moves, this waits for the next session."""
        while True:
            self._inbox.check_open()
            if self._session is not None:
                try:
                    return await self._session.can_say(text)
                except SessionEnded:
                    pass  # The next session is asked.
            await asyncio.sleep(ASK_AGAIN_SECS)

    async def say_more(self, utterance_id: int, text: str, *, more: bool = True) -> None:
        """Add to an utterance; while it moves, it waits."""
        async with self._giving_words:
            self._inbox.check_open()
            for number, saying in self._waiting_words:
                if number == utterance_id:
                    saying.add(text, more=more)
                    return
            inner = next((i for i, n in self._numbers.items() if n == utterance_id), None)
            saying = None if inner is None else self._sayings.get(inner)
            if inner is None or saying is None or self._session is None:
                return  # It is over.
            saying.add(text, more=more)
            try:
                await self._session.say_more(inner, text, more=more)
            except SessionEnded:
                self._inbox.check_open()  # It moves, and takes the text along.

    async def hold(self, held: bool = True) -> None:
        """Keep the model's own words back, also where it moves to."""
        self._inbox.check_open()
        if self._session is not None:
            try:
                await self._session.hold(held)
            except SessionEnded:
                self._inbox.check_open()
        self._held = held

    async def _say_now(self, saying: Saying, *, cut_in: bool) -> int | None:
        """Hand a saying to the session; None if it is moving."""
        if self._session is None or self._late_steps:
            return None
        try:
            return await give(self._session, saying, cut_in=cut_in)
        except SessionEnded:
            self._inbox.check_open()
            return None

    async def hush(self) -> None:
        """Drop the rest of all given words."""
        self._inbox.check_open()
        self._drop_waiting_words()
        if self._session is not None:
            await self._session.hush()

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
        await asyncio.gather(*self._leaving, return_exceptions=True)

    async def _run(self) -> None:
        while self._session is not None:
            session = self._session
            try:
                await self._hear(session)
                return
            except SessionEnded as error:
                await self._move(session, error)
            except Exception as error:
                logger.opt(exception=error).error(f"Session {self._id} failed")
                self._inbox.end(f"it failed: {error}")
                return

    async def _hear(self, session: DuplexSession) -> None:
        """Take the steps of a session."""
        async for step in session.steps():
            if step.index >= self._late_steps:
                self._take(step)
                continue
            self._keeper.take(step)
            if step.index + 1 == self._late_steps:
                self._late_steps = 0
                await self._say_again(session)

    def _take(self, step: Step) -> None:
        self._keeper.take(step)
        number = self._numbers.get(step.utterance_id) if step.utterance_id else None
        if step.utterance_id is not None:
            self._sayings.hear(step.utterance_id, step.text_piece)
        said = (*self._take_ended(), *(self._end_saying(each) for each in step.said))
        self._answered += 1
        index = self._first + step.index
        self._inbox.put(replace(step, index=index, utterance_id=number, said=said))

    def _note_saying(self, inner: int, number: int, saying: Saying) -> None:
        self._sayings.add(inner, saying)
        self._numbers[inner] = number

    def _end_saying(self, said: Said) -> Said:
        saying = self._sayings.get(said.utterance_id)
        self._sayings.end(said)
        number = self._numbers.pop(said.utterance_id, said.utterance_id)
        before = saying.before if saying is not None else ""
        return replace(said, utterance_id=number, spoken=f"{before} {said.spoken}".strip())

    def _drop_waiting_words(self) -> None:
        for number, saying in self._waiting_words:
            self._ended_here.append(saying.ended(number))
        self._waiting_words.clear()

    def _take_ended(self) -> tuple[Said, ...]:
        ended, self._ended_here = self._ended_here, []
        return tuple(ended)

    def _answer_with_silence(self) -> None:
        """Answer what was sent and will not be heard."""
        while self._answered < self._sent:
            pcm, said = np.zeros(STEP_SAMPLES, np.float32), self._take_ended()
            self._inbox.put(Step(self._answered, pcm, TEXT_PADDING, None, NO_TIME, said=said))
            self._answered += 1

    def _keep_words(self) -> None:
        """Let what was not said wait for the next session."""
        self._waiting_words += [
            (self._numbers[inner], saying.continued()) for inner, saying in self._sayings.items()
        ]
        self._sayings.clear()
        self._numbers.clear()

    async def _move(self, session: DuplexSession, error: SessionEnded) -> None:
        """Go on in another session; end with a reason if there is none."""
        self._session = None
        self._late_steps = 0
        self._unheard.add(*self._keeper.take_unanswered())
        self._keep_words()
        self._answer_with_silence()
        started_secs = time.monotonic()
        logger.info(f"Session {self._id}: {error.reason}; it moves")
        self._leave(session)
        history, reason = self.history(), error.reason
        if self._is_at_its_limit() or history is None:
            self._inbox.end(reason)
            return
        self._delay_told = False
        waiting = f"{reason}; no other has answered yet"
        late = asyncio.create_task(self._tell_of_delay(waiting, DELAY_NOTICE_SECS))
        try:
            if self._news is not None:
                await self._news.moving(reason)
            fresh = await self._open_elsewhere(history, Retry(self._give_up_secs, RETRY))
        except DuplexError as problem:
            self._inbox.end(f"{reason}; it cannot go on elsewhere: {problem}")
            return
        finally:
            late.cancel()
        await self._go_on(fresh)
        secs = time.monotonic() - started_secs
        logger.info(f"Session {self._id} goes on as {fresh.id} after {secs:.2f} s")
        if self._news is not None:
            await self._news.moved(secs)

    async def _tell_of_delay(self, problem: str, after_secs: float) -> None:
        await asyncio.sleep(after_secs)
        if self._news is not None and not self._delay_told:
            self._delay_told = True
            await self._news.delayed(problem)

    async def _go_on(self, session: DuplexSession) -> None:
        """Let a session go on: with what the user said to nobody, then with what comes."""
        if self._held:
            await self._hold_again(session)
        speech = self._unheard.take_speech(self._keeper.audio)
        self._late_steps = len(speech)
        self._first = self._sent - len(speech)
        self._session = session
        self.moves += 1
        try:
            for pcm in speech:
                self._keeper.send(pcm)
                session.send(pcm)
        except SessionEnded:
            return  # Noticed by those who take its steps: it moves again.
        if not speech:
            await self._say_again(session)

    def _leave(self, session: DuplexSession) -> None:
        """Close a session in the background: its server may be slow to say goodbye."""
        leaving = asyncio.create_task(session.close(), name=f"{self._id}-leaves-{session.id}")
        self._leaving.add(leaving)
        leaving.add_done_callback(self._leaving.discard)

    async def _open_elsewhere(self, history: History, retry: Retry) -> DuplexSession:
        anew = MAX_ANEW
        while True:
            opened: list[DuplexSession] = []
            try:
                return await self._try_elsewhere(history, opened)
            except DuplexError as problem:
                await self._tell_of_delay(str(problem), after_secs=0)
                if opened and anew:
                    anew -= 1
                    retry.restart()
                if not await retry.pause():
                    raise

    async def _try_elsewhere(self, history: History, opened: list[DuplexSession]) -> DuplexSession:
        """Open a session and restore it; what was opened is noted, however it ends."""
        try:
            async with asyncio.timeout(TRY_SECS):
                fresh = await self._backend.open(self._rest_of_config())
                opened.append(fresh)
                await fresh.restore(history)
                return fresh
        except TimeoutError as error:
            self._leave_all(opened)
            raise DuplexError(f"it took longer than {TRY_SECS:g} s") from error
        except BaseException:
            self._leave_all(opened)
            raise

    def _leave_all(self, sessions: list[DuplexSession]) -> None:
        for session in sessions:
            self._leave(session)

    async def _say_again(self, session: DuplexSession) -> None:
        """Give the new session what the old one had not said."""
        async with self._giving_words:
            waiting, self._waiting_words = self._waiting_words, []
            for number, rest in waiting:
                if not rest.text and not rest.more:
                    self._ended_here.append(rest.ended(number))
                    continue
                try:
                    # What was being said goes on at once, at the next word.
                    inner = await give(session, rest, cut_in=bool(rest.before))
                    self._note_saying(inner, number, rest)
                except DuplexError as error:
                    logger.warning(f"Session {self._id}: {rest.text!r} will not be said: {error}")
                    self._ended_here.append(rest.ended(number))

    async def _hold_again(self, session: DuplexSession) -> None:
        try:
            await session.hold()
        except DuplexError as error:
            logger.error(f"Session {self._id}: the model's own words are not kept back: {error}")

    def _rest_of_config(self) -> SessionConfig:
        if self._config.max_secs is None:
            return self._config
        left_steps = self._config.max_secs / STEP_SECS - self._sent + len(self._unheard)
        left_secs = max(1, left_steps) * STEP_SECS
        return self._config.model_copy(update={"max_secs": left_secs})

    def _is_at_its_limit(self) -> bool:
        max_secs = self._config.max_secs
        return max_secs is not None and self._answered * STEP_SECS > max_secs - 1e-6
