"""The session that goes on with a conversation."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import numpy as np
from loguru import logger

from pipecat_duplex.session.contract import DuplexBackend, DuplexSession, SessionConfig
from pipecat_duplex.session.errors import DuplexError, SessionEnded
from pipecat_duplex.session.history import History
from pipecat_duplex.session.retry import Pauses, Retry
from pipecat_duplex.session.step import HeardWord, Step

RETRY = Pauses(first_secs=0.1, max_secs=1.0)

TRY_SECS = 15.0
"""How long a session may take to be open and to have taken up the conversation."""

STEP_DEADLINE_SECS = 2.0
"""How long it may take for a step that was taken elsewhere."""

MAX_PATIENCE = 8.0
"""So many times as long it may take, at most. Each try that had found a session is given twice as
long as the one before: where many conversations move at once and machines are busy, one that is
hurried begins again and again, and is never done."""

MAX_ANEW = 5
"""How often the time to give up is counted anew, after a try that had found a session."""


class Taken(NamedTuple):
    """A session that is where the conversation is.

    Parameters:
        session: The session.
        steps: Its steps from here on.
        followed: Steps that it has answered before.
        held: Whether the model's own words are kept back in it.
        heard: Words of the user's that came with those steps.
    """

    session: DuplexSession
    steps: AsyncIterator[Step]
    followed: int
    held: bool
    heard: tuple[HeardWord, ...] = ()


class Successor:
    """Opens another session, and brings it to where the conversation is.

    The conversation may go on meanwhile: its steps are given to the other session as well. What
    fails is tried again, from what was said by then.
    """

    def __init__(
        self,
        backend: DuplexBackend,
        config: Callable[[], SessionConfig],
        history: Callable[[], History | None],
        *,
        hold: Callable[[], bool],
        leave: Callable[[DuplexSession], None],
        problem: Callable[[DuplexError], Awaitable[None]],
    ):
        """Begin.

        Args:
            backend: Where sessions come from.
            config: Returns what is asked of the model.
            history: Returns what was said so far.
            hold: Returns whether the model's own words are kept back.
            leave: Closes a session that is of no use.
            problem: Is told of each try that failed.
        """
        self._backend = backend
        self._config = config
        self._history = history
        self._hold = hold
        self._leave = leave
        self._problem = problem
        self._retry = Retry(math.inf, RETRY)
        self._patience = 1.0
        self._session: DuplexSession | None = None
        self._steps: AsyncIterator[Step] | None = None
        self._held = False
        self._known: deque[tuple[np.ndarray, np.ndarray]] = deque()
        self._followed = 0
        self._heard: list[HeardWord] = []
        self._news = asyncio.Event()
        self._level = asyncio.Event()
        self._taken = False
        self.behind = 0
        self.has_failed = False
        self._task = asyncio.create_task(self._run(), name="successor")

    @property
    def is_restored(self) -> bool:
        """Whether it has taken up what was said when it was opened."""
        return self._session is not None

    @property
    def is_level(self) -> bool:
        """Whether it is where the conversation is."""
        return self._level.is_set()

    def add(self, pcm: np.ndarray, tokens: np.ndarray) -> None:
        """Give it a step that the conversation took meanwhile.

        Args:
            pcm: The user's audio, shape ``(STEP_SAMPLES,)``.
            tokens: :attr:`Step.tokens`, shape ``(17,)``.
        """
        self._known.append((pcm, tokens))
        self.behind += 1
        self._level.clear()
        self._news.set()

    def give_up_after(self, secs: float) -> None:
        """Try only so much longer."""
        self._retry = Retry(secs, RETRY)

    async def level(self) -> None:
        """Wait until it is where the conversation is.

        Raises:
            DuplexError: It was given up.
        """
        waiting = asyncio.create_task(self._level.wait())
        try:
            await asyncio.wait([waiting, self._task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if not self._level.is_set():
            self._task.result()

    def take(self) -> Taken:
        """Return the session, which is level; the rest is up to who asked."""
        assert self.is_level and self._session is not None and self._steps is not None
        self._taken = True
        self._task.cancel()
        heard = tuple(self._heard)
        return Taken(self._session, self._steps, self._followed, self._held, heard)

    def drop(self) -> None:
        """Give it up; it closes what it opened."""
        self._task.cancel()

    async def close(self) -> None:
        """Give it up, and wait until it has."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        anew = MAX_ANEW
        while True:
            opened: list[DuplexSession] = []
            try:
                await self._try(opened)
            except DuplexError as problem:
                self.has_failed = True
                self._session = None
                self._level.clear()
                await self._problem(problem)
                if opened:
                    self._patience = min(2 * self._patience, MAX_PATIENCE)
                if opened and anew:
                    anew -= 1
                    self._retry.restart()
                if not await self._retry.pause():
                    raise

    async def _try(self, opened: list[DuplexSession]) -> None:
        """Open a session and keep it level; what was opened is noted, however it ends."""
        began_secs = time.monotonic()
        history = self._history()
        self._known.clear()
        self._heard.clear()
        self.behind = self._followed = 0
        asked = {"restores": history is not None, "patience": self._patience}
        config = self._config().model_copy(update=asked)
        try_secs = TRY_SECS * self._patience
        try:
            async with asyncio.timeout(try_secs):
                session = await self._backend.open(config)
                opened.append(session)
                if history is not None:
                    await session.restore(history)
                self._held = self._hold() and await hold_back(session)
            secs = time.monotonic() - began_secs
            logger.debug(f"Session {session.id} was restored in {secs:.2f} s, {self.behind} behind")
            self._session, self._steps = session, session.steps()
            await self._follow(session, self._steps)
        except TimeoutError as error:
            self._leave_all(opened)
            raise DuplexError(f"it took longer than {try_secs:g} s") from error
        except BaseException:
            if not self._taken:
                self._leave_all(opened)
            raise

    async def _follow(self, session: DuplexSession, steps: AsyncIterator[Step]) -> None:
        due = 0
        while True:
            while self._known:
                session.follow(*self._known.popleft())
                due += 1
            if not due:
                if not self._level.is_set():
                    logger.debug(f"Session {session.id} is level after {self._followed} steps")
                self._level.set()
                self._news.clear()
                await self._news.wait()
                continue
            try:
                async with asyncio.timeout(STEP_DEADLINE_SECS):
                    step = await anext(steps)
            except StopAsyncIteration:
                raise SessionEnded(session.id, "it was closed") from None
            except TimeoutError:
                reason = f"it has answered no step for {STEP_DEADLINE_SECS:g} s"
                raise SessionEnded(session.id, reason) from None
            due -= 1
            self._heard += step.heard
            self.behind -= 1
            self._followed += 1

    def _leave_all(self, sessions: list[DuplexSession]) -> None:
        for session in sessions:
            self._leave(session)


async def hold_back(session: DuplexSession, held: bool = True) -> bool:
    """Keep a model's own words back, or no longer; return whether they are kept back now."""
    try:
        await session.hold(held)
    except SessionEnded:
        raise
    except DuplexError as error:
        logger.error(f"Session {session.id}: the model's own words are not kept back: {error}")
        return not held
    return held
