"""How much work is done at once, so that neighbours do not wait for it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

QUICK_SHARE = 0.5
"""A part that takes less of that time may be twice as long."""


class Pace:
    """Chooses the length of the parts of some work by the time that the last ones took.

    The time is what the thread computed: that others had the processor is no reason for shorter
    parts, which take longer in all. Lengths are doubled and halved, so there are few of them.
    """

    def __init__(self, least: int, most: int, secs: float):
        """Initialize; the first part is the shortest.

        Args:
            least: Steps of the shortest part: with fewer, it would hardly take less time.
            most: Steps of the longest.
            secs: How long a part may take.
        """
        self.steps = least
        self._least = least
        self._most = most
        self._secs = secs

    @contextmanager
    def part(self, steps: int) -> Iterator[None]:
        """Do a part, and choose how long the next one is.

        Args:
            steps: Steps that it has.
        """
        began_secs = time.thread_time()
        yield
        self.note(steps, time.thread_time() - began_secs)

    def note(self, steps: int, secs: float) -> None:
        """Take note of the time that a part took.

        Args:
            steps: Steps that it had.
            secs: The time.
        """
        if secs > self._secs and steps <= self.steps:
            self.steps = max(self._least, self.steps // 2)
        elif secs < QUICK_SHARE * self._secs and steps >= self.steps:
            self.steps = min(self._most, self.steps * 2)
