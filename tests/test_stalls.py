"""What runs a test again, and what does not."""

import ctypes

import pytest

from tests.stalls import ATTEMPTS, STALL_SECS, by_the_clock


def stand_still(secs: float):
    """Keep every thread from running."""
    ctypes.PyDLL(None).usleep(round(secs * 1e6))  # Unlike CDLL it keeps the interpreter's lock.


@pytest.mark.parametrize("stands_still", [False, True])
async def test_what_always_fails_fails(stands_still: bool):
    runs = []

    @by_the_clock
    async def fails():
        runs.append(1)
        if stands_still:
            stand_still(3 * STALL_SECS)
        raise AssertionError("a fault")

    with pytest.raises(AssertionError, match="a fault"):
        await fails()
    assert len(runs) == (ATTEMPTS if stands_still else 1)


async def test_what_fails_where_the_machine_stood_still_is_run_again():
    runs = []

    @by_the_clock
    async def fails_once(name: str):
        runs.append(name)
        if len(runs) == 1:
            stand_still(3 * STALL_SECS)
            raise AssertionError("a word is missing")

    await fails_once(name="once")
    assert runs == ["once", "once"]
