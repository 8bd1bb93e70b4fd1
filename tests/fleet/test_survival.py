"""Calls on workers that die, shut down, hang and are cut off: ``benchmarks/survival``, short."""

import asyncio
import contextlib

import pytest

from benchmarks.survival.__main__ import run
from benchmarks.survival.words import WordCount, compare
from benchmarks.survival.workers import Worker


@pytest.mark.parametrize(
    ("said", "count"),
    [
        ("a b c a b c a b c", WordCount(9)),
        ("a b c a b c", WordCount(9, lost=3)),
        ("a b b c a b c a b c", WordCount(9, doubled=1)),
        ("a b c a x b c a b c", WordCount(9, others=1)),
        ("a b c b c a b a b c", WordCount(9, lost=1, others=1, doubled=1)),
        ("", WordCount(9, lost=9)),
    ],
)
def test_words_are_compared_in_order(said: str, count: WordCount) -> None:
    found = compare("a b c a b c a b c".split(), said.split())
    assert found.lost == count.lost
    assert found.doubled + found.others == count.doubled + count.others


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "stop", "cut", "disk"])
async def test_no_call_and_no_word_is_lost(fault: str) -> None:
    workers = [Worker(slots=4, agent="scripted") for _ in range(2)]
    async with contextlib.AsyncExitStack() as stack:
        for worker in workers:
            stack.push_async_callback(worker.stop)
        await asyncio.gather(*(worker.start() for worker in workers))
        figures, results = await run(workers, fault, callers=3, secs=8.0, every_secs=4.5)
    assert figures.faults >= 1
    assert figures.moves >= 1
    assert [result.lost for result in results] == [None] * 3
    # Words that come too late on a busy machine are marked, and are no words lost.
    assert (figures.words.lost, figures.words.doubled, figures.words.others) == (0, 0, 0)
    assert figures.contexts_wrong == 0
