"""How much of the machine's time texts may take whose length callers choose."""

import asyncio
import time
from collections.abc import Iterator
from weakref import WeakKeyDictionary

SLICE_SECS = 0.002
"""Work that is done on an asyncio loop at once, before others have their turn."""

SHARE = 0.25
"""Largest part of a loop's time for such work, for all that ask for it."""


class LoopShare:
    """Does work of many sessions on their asyncio loop, by turns and within a share of its time.

    A thread would not help: a holder of the interpreter's lock holds up the engine's thread too.
    """

    def __init__(self):
        """Initialize with nothing to do."""
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            WeakKeyDictionary()
        )
        self._free_at_secs = 0.0

    async def run(self, parts: Iterator[object]) -> None:
        """Do work to its end. Short work that nobody is ahead of is done at once.

        Args:
            parts: The work, a part of far less than :data:`SLICE_SECS` at each ``next``.
        """
        turn = self._turns.setdefault(asyncio.get_running_loop(), asyncio.Lock())
        while True:
            async with turn:  # first come, first served
                wait_secs = self._free_at_secs - time.perf_counter()
                if wait_secs > 0:
                    await asyncio.sleep(wait_secs)
                if self._run_slice(parts):
                    return
            await asyncio.sleep(0)  # those who wait are ahead of us now

    def _run_slice(self, parts: Iterator[object]) -> bool:
        began_secs = now_secs = time.perf_counter()
        try:
            for _ in parts:
                now_secs = time.perf_counter()
                if now_secs - began_secs >= SLICE_SECS:
                    return False
            return True
        finally:
            now_secs = time.perf_counter()
            self._free_at_secs = now_secs + (now_secs - began_secs) * (1 / SHARE - 1)


class Allowance:
    """An amount that may be spent, and comes back at a steady rate. The time is an argument."""

    def __init__(self, per_sec: float, most: float):
        """Initialize with the most that may be there.

        Args:
            per_sec: What comes back.
            most: What may be spent at once.
        """
        self._per_sec = per_sec
        self._most = most
        self._left = most
        self._at_secs = 0.0

    def spend(self, amount: float, now_secs: float) -> bool:
        """Spend an amount, if it is there; else nothing is spent.

        Args:
            amount: How much.
            now_secs: When.
        """
        gone_secs = max(0.0, now_secs - self._at_secs)
        self._at_secs = now_secs
        self._left = min(self._most, self._left + gone_secs * self._per_sec)
        if amount > self._left:
            return False
        self._left -= amount
        return True
