"""Machines that stand still: what a test by the wall clock cannot tell from a fault of the code.

The service leaves out what comes too late to be heard. So on a machine that stood still for a
moment a word is missing, rightly: a test that fails then says nothing, and is run again.
"""

import functools
import threading
import time
from collections.abc import Awaitable, Callable

from loguru import logger

ATTEMPTS = 3
STALL_SECS = 0.1
"""Shorter ones are made up for by what waits to be played."""


class StallWatch(threading.Thread):
    """Notes the longest time for which no thread of this process got to run.

    Code that holds the interpreter for as long looks the same. It does so each time, and its tests
    fail in the end.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self._stop_watching = threading.Event()
        self.longest_secs = 0.0

    def __enter__(self) -> "StallWatch":
        self.start()
        return self

    def __exit__(self, *_):
        self._stop_watching.set()
        self.join()

    def run(self):
        seen_secs = time.monotonic()
        watching = True
        while watching:
            watching = not self._stop_watching.wait(0.01)
            now_secs = time.monotonic()
            self.longest_secs = max(self.longest_secs, now_secs - seen_secs)
            seen_secs = now_secs


def by_the_clock(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    """Run a test again that failed while the machine stood still; three times at most.

    Its fixtures stay the same, so nothing that the test leaves in them may disturb the next run.
    """

    @functools.wraps(test)
    async def run(*args, **kwargs):
        for left in reversed(range(ATTEMPTS)):
            with StallWatch() as watch:
                try:
                    return await test(*args, **kwargs)
                except Exception as failure:
                    failed = failure
            if not left or watch.longest_secs < STALL_SECS:
                raise failed
            logger.warning(
                f"Again: the machine stood still for {watch.longest_secs:.2f} s: {failed}"
            )

    return run
