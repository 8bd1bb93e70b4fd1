"""How long something is tried again, and with which pauses."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pauses:
    """Pauses between tries: each twice as long as the one before.

    Parameters:
        first_secs: The first pause.
        max_secs: The longest.
    """

    first_secs: float = 0.25
    max_secs: float = 2.0


class Retry:
    """Tries until a deadline.

    Example::

        retry = Retry(give_up_secs=10)
        while True:
            try:
                return await backend.open(config)
            except DuplexError:
                if not await retry.pause():
                    raise
    """

    def __init__(
        self,
        give_up_secs: float,
        pauses: Pauses | None = None,
        *,
        now_secs: Callable[[], float] = time.monotonic,
    ):
        """Initialize; the time runs from here.

        Args:
            give_up_secs: How long to try.
            pauses: The pauses between tries.
            now_secs: The time, for tests.
        """
        self._give_up_secs = give_up_secs
        self._pauses = pauses or Pauses()
        self._now_secs = now_secs
        self.restart()

    @property
    def secs_left(self) -> float:
        """Time until the deadline, not below 0."""
        return max(0.0, self._deadline_secs - self._now_secs())

    def restart(self) -> None:
        """Count the time anew: the last try made progress."""
        self._deadline_secs = self._now_secs() + self._give_up_secs
        self._pause_secs = self._pauses.first_secs

    async def pause(self) -> bool:
        """Wait before the next try.

        Returns:
            False, at once, if the deadline comes before the end of the pause.
        """
        pause_secs = self._pause_secs
        if pause_secs > self.secs_left:
            return False
        self._pause_secs = min(2 * pause_secs, self._pauses.max_secs)
        await asyncio.sleep(pause_secs)
        return True
