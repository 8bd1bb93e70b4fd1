"""How long something is tried again."""

import pytest

from pipecat_duplex.session.retry import Pauses, Retry


async def pauses_of(retry: Retry, clock: list[float], monkeypatch) -> list[float]:
    pauses: list[float] = []

    async def sleep(secs: float) -> None:
        pauses.append(secs)
        clock[0] += secs

    monkeypatch.setattr("pipecat_duplex.session.retry.asyncio.sleep", sleep)
    while await retry.pause():
        pass
    return pauses


async def test_pauses_grow_up_to_the_deadline(monkeypatch):
    clock = [100.0]
    retry = Retry(5, Pauses(0.5, 2), now_secs=lambda: clock[0])
    assert await pauses_of(retry, clock, monkeypatch) == [0.5, 1, 2]
    assert retry.secs_left == pytest.approx(1.5)


async def test_progress_counts_anew(monkeypatch):
    clock = [0.0]
    retry = Retry(1, Pauses(0.4, 2), now_secs=lambda: clock[0])
    assert await pauses_of(retry, clock, monkeypatch) == [0.4]
    retry.restart()
    assert retry.secs_left == pytest.approx(1)
    assert await pauses_of(retry, clock, monkeypatch) == [0.4]


async def test_no_time_is_one_try():
    assert not await Retry(0).pause()
