"""One conversation with the engine, as seen from asyncio."""

import asyncio
import math
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple

import numpy as np

from pipecat_duplex.session import (
    STEP_SAMPLES,
    STEP_SECS,
    DuplexSession,
    InvalidAudio,
    SessionConfig,
    SessionEnded,
    Step,
)

MAX_PENDING_STEPS = 4096
"""Frames that may be sent beyond the last step taken from ``steps()``: 5.5 minutes, 32 MB each way.

A session that goes further is ended: its sender or its consumer has lost touch with the model.
"""


class Frame(NamedTuple):
    """One step of the user's audio, waiting for the engine."""

    step_index: int
    pcm: np.ndarray
    sent_at_secs: float


class EngineSession(DuplexSession):
    """A conversation in one slot of an engine.

    Belongs to the asyncio loop in which it was opened: call its methods there. The engine's thread
    only takes frames out of ``waiting`` and posts steps back to that loop.
    """

    def __init__(
        self,
        config: SessionConfig,
        *,
        wake_engine: Callable[[], None],
        leave_slot: Callable[["EngineSession"], None],
    ):
        """Initialize a session; ``Engine.open`` does, for whoever needs one.

        Args:
            config: What the conversation asks of the model. Without a seed, one is drawn.
            wake_engine: Called after a frame was put into ``waiting``.
            leave_slot: Called once, when the session is over.
        """
        if config.seed is None:
            config = config.model_copy(update={"seed": secrets.randbits(63)})
        self.config = config
        self.loop = asyncio.get_running_loop()
        self.waiting: deque[Frame] = deque()
        self._id = secrets.token_hex(4)
        self._wake_engine = wake_engine
        self._leave_slot = leave_slot
        self._max_steps = _steps_in(config.max_secs)
        self._sent = 0
        self._taken = 0
        self._ready: deque[Step] = deque()
        self._consumer: asyncio.Future[None] | None = None
        self._end_reason: str | None = None
        self._closed = False

    @property
    def id(self) -> str:
        """A name for logs and error messages."""
        return self._id

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
            SessionEnded: The session is closed, has failed or has reached its limit, or more than
                :data:`MAX_PENDING_STEPS` steps are pending.
        """
        _check_audio(pcm)
        if self._closed:
            raise SessionEnded(self._id, "it was closed")
        if self._end_reason is not None:
            raise SessionEnded(self._id, self._end_reason)
        if self._sent == self._max_steps:
            raise SessionEnded(self._id, self._limit_reason())
        if self._sent - self._taken >= MAX_PENDING_STEPS:
            reason = f"{MAX_PENDING_STEPS} steps were sent whose answers nobody has taken"
            self.end(reason)
            raise SessionEnded(self._id, reason)
        index = self._sent
        self._sent += 1
        self.waiting.append(Frame(index, pcm.copy(), time.perf_counter()))
        self._wake_engine()
        return index

    async def steps(self) -> AsyncIterator[Step]:
        """Iterate over the agent's steps, one for each ``send``, in order.

        A consumer that was cancelled may call it again and goes on where it stopped.

        Yields:
            The next step.

        Raises:
            SessionEnded: The session failed or reached its limit; steps computed before come first.
            RuntimeError: There is another consumer.
        """
        while not self._closed:
            if self._ready:
                self._taken += 1
                yield self._ready.popleft()
            elif self._end_reason is not None:
                raise SessionEnded(self._id, self._end_reason)
            else:
                await self._wait_for_news()

    async def close(self) -> None:
        """Leave the conversation and free its slot. May be called any number of times."""
        if self._closed:
            return
        self._closed = True
        self._ready.clear()
        if self._end_reason is None:
            self._leave()
        self._wake_consumer()

    def deliver(self, step: Step) -> None:
        """Take a step from the engine."""
        if self._closed or self._end_reason is not None:
            return
        self._ready.append(step)
        if step.index + 1 == self._max_steps:
            self.end(self._limit_reason())
        else:
            self._wake_consumer()

    def end(self, reason: str) -> None:
        """End the session for a reason other than ``close``; the first reason counts."""
        if self._closed or self._end_reason is not None:
            return
        self._end_reason = reason
        self._leave()
        self._wake_consumer()

    def _leave(self) -> None:
        self._leave_slot(self)
        self.waiting.clear()

    def _limit_reason(self) -> str:
        return f"it reached its limit of {self.config.max_secs:g} s"

    async def _wait_for_news(self) -> None:
        if self._consumer is not None:
            raise RuntimeError(f"session {self._id} has a consumer of its steps already")
        self._consumer = self.loop.create_future()
        try:
            await self._consumer
        finally:
            self._consumer = None

    def _wake_consumer(self) -> None:
        if self._consumer is not None and not self._consumer.done():
            self._consumer.set_result(None)


def _check_audio(pcm: np.ndarray) -> None:
    if not isinstance(pcm, np.ndarray):
        raise InvalidAudio(f"audio must be a numpy array, not {type(pcm).__name__}")
    if pcm.dtype != np.float32:
        raise InvalidAudio(f"audio must be float32, not {pcm.dtype}")
    if pcm.shape != (STEP_SAMPLES,):
        raise InvalidAudio(f"audio must have shape ({STEP_SAMPLES},), not {pcm.shape}")
    if not np.isfinite(pcm).all():
        raise InvalidAudio("audio must be finite, but holds NaN or infinity")


def _steps_in(max_secs: float | None) -> int | None:
    """The number of steps that hold this much audio, rounded up."""
    if max_secs is None:
        return None
    return math.ceil(max_secs / STEP_SECS - 1e-6)
