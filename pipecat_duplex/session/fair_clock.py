"""A clock for deadlines that others have to meet: it stands still while this process does."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

TICK_SECS = 0.1

MAX_TICK_SECS = 0.4
"""A tick that takes longer was held up by this process, or by its machine."""


class FairClock:
    """Time in which the event loop ran.

    Another machine is not blamed for answers that wait in our own buffers. After a stall, timers
    fire before what came in the meantime has been read, so deadlines by the wall clock would hang
    up on everybody.
    """

    def __init__(
        self,
        monotonic_secs: Callable[[], float] = time.monotonic,
        *,
        max_tick_secs: float = MAX_TICK_SECS,
    ):
        """Initialize; :meth:`running` lets it go.

        Args:
            monotonic_secs: The wall clock, for tests.
            max_tick_secs: The most by which it goes on between two ticks.
        """
        self._monotonic_secs = monotonic_secs
        self._max_tick_secs = max_tick_secs
        self._ticked_secs = monotonic_secs()
        self._fair_secs = self._ticked_secs

    def now_secs(self) -> float:
        """Return the time, in seconds from some moment on."""
        since_secs = self._monotonic_secs() - self._ticked_secs
        return self._fair_secs + min(since_secs, self._max_tick_secs)

    def tick(self) -> None:
        """Let the time go on: the event loop runs."""
        self._fair_secs = self.now_secs()
        self._ticked_secs = self._monotonic_secs()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Tick in the background."""
        self.tick()
        ticking = asyncio.create_task(self._tick_on(), name="fair-clock")
        try:
            yield
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)

    async def _tick_on(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECS)
            self.tick()
