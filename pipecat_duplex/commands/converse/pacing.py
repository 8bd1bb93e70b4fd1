"""How fast a file is fed: by the wall clock, or as fast as the model goes."""

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import suppress
from typing import Protocol

import numpy as np

from pipecat_duplex.session import (
    STEP_SECS,
    CanSay,
    DuplexBackend,
    DuplexError,
    DuplexSession,
    SessionConfig,
    SessionEnded,
    Step,
    StepTiming,
)
from pipecat_duplex.session.history import History

STALL_SECS = 120.0
"""A model that gives nothing for this long is given up."""


LAST_STEPS_SECS = 2.0
"""How long to wait for the last answers, at the wall clock's pace."""


class WatchedBackend:
    """A backend that tells how far its one session has come.

    Parameters:
        timings: Of every step that came out.
        failure: Why the session could not be opened, or ended.
    """

    def __init__(self, backend: DuplexBackend):
        """Initialize around a backend.

        Args:
            backend: Where the session comes from. It is not closed by this one.
        """
        self._backend = backend
        self._news = asyncio.Condition()
        self._sent_steps = 0
        self._ended = False
        self.timings: list[StepTiming] = []
        self.failure: DuplexError | None = None

    async def open(self, config: SessionConfig) -> DuplexSession:
        """Open the session; see :class:`~pipecat_duplex.session.DuplexBackend`."""
        try:
            return _WatchedSession(await self._backend.open(config), self)
        except DuplexError as error:
            self.failure = error
            await self.note_end()
            raise

    async def close(self) -> None:
        """Leave the backend open: it belongs to somebody else."""

    async def wait_for(self, steps: int) -> bool:
        """Wait until this many steps have come out and were dealt with downstream.

        Args:
            steps: Counted from the start of the session.

        Returns:
            False if the session is over before.

        Raises:
            DuplexError: Nothing came for :data:`STALL_SECS`.
        """
        async with self._news:
            while len(self.timings) < steps and not self._ended:
                try:
                    await asyncio.wait_for(self._news.wait(), STALL_SECS)
                except TimeoutError as error:
                    raise DuplexError(
                        f"the model gave nothing for {STALL_SECS:.0f} s: "
                        "see what 'pipecat-duplex doctor' says"
                    ) from error
        return not self._ended

    async def wait_for_sent(self) -> bool:
        """Wait until every step that was sent has come out; see :meth:`wait_for`."""
        return await self.wait_for(self._sent_steps)

    def note_sent(self) -> None:
        """Count a step on its way in."""
        self._sent_steps += 1

    async def note_step(self, timing: StepTiming) -> None:
        """Count a step that came out."""
        async with self._news:
            self.timings.append(timing)
            self._news.notify_all()

    async def note_end(self) -> None:
        """Let nobody wait any longer."""
        async with self._news:
            self._ended = True
            self._news.notify_all()


class _WatchedSession:
    """A session that reports to its :class:`WatchedBackend`."""

    def __init__(self, session: DuplexSession, watch: WatchedBackend):
        self._session = session
        self._watch = watch

    @property
    def id(self) -> str:
        return self._session.id

    @property
    def config(self) -> SessionConfig:
        return self._session.config

    @property
    def hearing_delay_steps(self) -> int | None:
        """Steps by which the user's words are behind the voice; None if nobody tells them."""
        return self._session.hearing_delay_steps

    @property
    def secs_left(self) -> float | None:
        return self._session.secs_left

    def send(self, pcm: np.ndarray) -> int:
        index = self._session.send(pcm)
        self._watch.note_sent()
        return index

    def follow(self, pcm: np.ndarray, tokens: np.ndarray) -> int:
        return self._session.follow(pcm, tokens)

    async def steps(self) -> AsyncIterator[Step]:
        try:
            async for step in self._session.steps():
                yield step
                # The consumer asks for the next step: it has done with this one.
                await self._watch.note_step(step.timing)
        except SessionEnded as error:
            self._watch.failure = error
            raise
        finally:
            await self._watch.note_end()

    @property
    def memory(self) -> None:
        """None: a run that is watched ends with its session."""
        return None

    async def say(
        self, text: str | AsyncIterable[str], *, cut_in: bool = False, more: bool = False
    ) -> int:
        return await self._session.say(text, cut_in=cut_in, more=more)

    async def can_say(self, text: str) -> CanSay:
        return await self._session.can_say(text)

    async def say_more(self, utterance_id: int, text: str, *, more: bool = True) -> None:
        await self._session.say_more(utterance_id, text, more=more)

    async def hold(self, held: bool = True) -> None:
        await self._session.hold(held)

    async def hush(self) -> None:
        await self._session.hush()

    async def restore(self, history: History) -> None:
        await self._session.restore(history)

    async def close(self) -> None:
        await self._session.close()


class Pacer(Protocol):
    """Says when the next step of the user's audio is due."""

    def now_secs(self) -> float:
        """Return the time, of the clock that the service goes by."""
        ...

    async def wait_turn(self, index: int) -> bool:
        """Wait until a step of audio is to be fed; False ends the conversation.

        Args:
            index: The step, counted from 0.
        """
        ...

    async def wait_end(self, steps: int) -> None:
        """Wait until everything that was fed has been answered.

        Args:
            steps: Steps that were fed.
        """
        ...


class LockStep:
    """As fast as the machine allows: the next step goes in when the one before has come out.

    Time is the audio that was fed, so the conversation is the same on every machine.
    """

    def __init__(self, backend: WatchedBackend):
        """Initialize at second 0.

        Args:
            backend: Whose session is fed.
        """
        self._backend = backend
        self._fed_steps = 0

    def now_secs(self) -> float:
        """Return the length of the audio fed so far."""
        return self._fed_steps * STEP_SECS

    async def wait_turn(self, index: int) -> bool:
        """Wait until every step before has come out."""
        going_on = await self._backend.wait_for(index)
        self._fed_steps = index + 1
        return going_on

    async def wait_end(self, steps: int) -> None:
        """Wait until the last step has come out."""
        await self._backend.wait_for(steps)


class RealTime:
    """By the wall clock: a step is fed when a microphone would have recorded it."""

    def __init__(self, backend: WatchedBackend):
        """Initialize a clock that starts with the first step.

        Args:
            backend: Whose session is fed.
        """
        self._backend = backend
        self._origin_secs: float | None = None

    def now_secs(self) -> float:
        """Return the time of a steady clock."""
        return time.monotonic()

    async def wait_turn(self, index: int) -> bool:
        """Wait until the step's last sample has been spoken."""
        if self._origin_secs is None:
            self._origin_secs = self.now_secs()
        due_secs = self._origin_secs + (index + 1) * STEP_SECS
        await asyncio.sleep(max(0.0, due_secs - self.now_secs()))
        return await self._backend.wait_for(0)

    async def wait_end(self, steps: int) -> None:
        """Wait until the steps on their way have come out; some may have been dropped as late."""
        await asyncio.sleep(STEP_SECS)
        # A server that speaks Opus keeps the rest of the last packet, and so its last step.
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_STEPS_SECS):
                await self._backend.wait_for_sent()
