"""Texts whose length callers choose are spelled by turns, in slices, and within an allowance."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from pipecat_duplex.engine import Engine
from pipecat_duplex.engine import share as share_module
from pipecat_duplex.engine.session import SAY_BURST_CHARS
from pipecat_duplex.engine.share import Allowance, LoopShare
from pipecat_duplex.engine.speech import MAX_WAITING
from pipecat_duplex.session import STEP_SAMPLES, CannotSay, SessionConfig

SILENCE = np.zeros(STEP_SAMPLES, np.float32)


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    engine = await Engine.load("embedded", slots=2)
    yield engine
    await engine.close()


def test_an_allowance_comes_back() -> None:
    allowance = Allowance(per_sec=10, most=100)
    assert allowance.spend(100, 5.0) and not allowance.spend(1, 5.0)
    assert not allowance.spend(11, 6.0) and allowance.spend(10, 6.0)
    assert not allowance.spend(101, 1000.0) and allowance.spend(100, 1000.0)
    assert not allowance.spend(5, 999.0)  # a clock that goes back gives nothing


def work(name: str, parts: int, order: list[str]) -> Iterator[None]:
    for _ in range(parts):
        order.append(name)
        yield


async def test_work_takes_turns_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share_module, "SLICE_SECS", 0.0)  # a slice is one part
    share, order = LoopShare(), []
    await asyncio.gather(*(share.run(work(name, 4, order)) for name in "abc"))
    # Each one's end is seen in a slice of its own.
    assert "".join(order) == "abc" * 4


async def test_short_work_is_done_at_once_and_long_work_leaves_the_loop_free() -> None:
    share, order = LoopShare(), []
    short = share.run(work("a", 1, order))
    with pytest.raises(StopIteration):
        short.send(None)
    slept = asyncio.create_task(asyncio.sleep(0.02))

    def long_work() -> Iterator[None]:
        end = time.thread_time() + 0.03
        while time.thread_time() < end:
            yield

    began = time.perf_counter()
    await share.run(long_work())
    assert slept.done()
    assert time.perf_counter() - began > 0.03 / share_module.SHARE * 0.7


async def test_cancelled_work_lets_others_go_on() -> None:
    share, order = LoopShare(), []

    def endless() -> Iterator[None]:
        while True:
            yield

    endless_task = asyncio.create_task(share.run(endless()))
    await asyncio.sleep(0.01)
    endless_task.cancel()
    await share.run(work("a", 3, order))
    assert order == ["a"] * 3


async def test_a_flood_of_words_is_refused_and_the_session_goes_on(engine: Engine) -> None:
    session = await engine.open(SessionConfig(seed=1))
    taken = refused = 0
    for _ in range(60):
        try:
            await session.say("no " * 1300, cut_in=True)
            taken += 1
        except CannotSay as error:
            refused += 1
            assert "too soon" in str(error) or "have ended" in str(error)
    assert 30 <= taken <= SAY_BURST_CHARS // 3900 + 2 and refused >= 20
    session.send(SILENCE)
    await anext(session.steps())
    # Another session has an allowance of its own.
    other = await engine.open(SessionConfig(seed=1))
    assert await other.say("hello") == 1


async def test_what_ended_and_was_not_told_has_an_end(engine: Engine) -> None:
    session = await engine.open(SessionConfig(seed=1))
    with pytest.raises(CannotSay, match="have ended"):
        for _ in range(MAX_WAITING + 2):
            await session.say("no", cut_in=True)
    session.send(SILENCE)
    step = await anext(session.steps())
    assert len(step.said) == MAX_WAITING
    await session.say("no", cut_in=True)


@pytest.mark.parametrize("text", ["hello " * 40_000, "a\ud800", "9" * 200_000])
async def test_what_is_too_long_or_no_text_is_refused(engine: Engine, text: str) -> None:
    session = await engine.open(SessionConfig())
    with pytest.raises(CannotSay):
        await session.say(text)
    assert await session.say("hello") == 1


async def test_says_keep_their_order_and_hush_drops_all_of_them(engine: Engine) -> None:
    session = await engine.open(SessionConfig(seed=1))
    says = [asyncio.create_task(session.say("no " * (1300 if i % 2 else 1))) for i in range(4)]
    await asyncio.sleep(0)
    await session.hush()
    assert [await say for say in says] == [1, 2, 3, 4]
    session.send(SILENCE)
    step = await anext(session.steps())
    assert [said.utterance_id for said in step.said] == [1, 2, 3, 4]
