"""Slots are prepared one by one, in short parts, and for as long as somebody waits for it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipecat_duplex.engine import Engine
from pipecat_duplex.engine.onnx import model as onnx_model
from pipecat_duplex.engine.onnx.model import Lane
from pipecat_duplex.engine.session import EngineSession
from pipecat_duplex.session import STEP_SAMPLES, DuplexError, InvalidPrompt, SessionConfig
from pipecat_duplex.session.history import MAX_STEPS, STREAMS, History
from tests.engine.scripted import noise

SILENCE = np.zeros(STEP_SAMPLES, np.float32)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    soundfile.write(tmp_path / "long.wav", noise(300, seed=1).reshape(-1) * 0.2, 24_000)
    engine = await Engine.load("embedded", slots=4, voices=tmp_path)
    yield engine
    await engine.close()


def history_of(session: EngineSession, steps: int) -> History:
    codes = np.zeros((STREAMS, steps), np.int32)
    audio = np.zeros((0, STEP_SAMPLES), np.float32)
    return History(session.memory.fingerprint, codes, False, audio)


class Work:
    """Notes what is done in which slot: a column of a prefill, a step of the codec, or a step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.log: list[tuple[str, int]] = []
        for name in ("read", "decode_alone", "encode_alone", "listen"):
            self._note(monkeypatch, name, getattr(Lane, name))

    def _note(self, monkeypatch: pytest.MonkeyPatch, name: str, method) -> None:
        def noting(lane, slot, *args):
            if name == "listen":
                self.log += [("step", each) for each in slot]
            else:
                self.log.append((name, slot))
            return method(lane, slot, *args)

        monkeypatch.setattr(Lane, name, noting)

    def slots(self, name: str) -> list[int]:
        return [slot for done, slot in self.log if done == name]


async def test_a_short_restore_comes_first_and_an_hour_costs_a_context(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = [await engine.open(SessionConfig()) for _ in range(4)]
    lengths = [MAX_STEPS, MAX_STEPS, MAX_STEPS, 40]
    work = Work(monkeypatch)
    await asyncio.gather(
        *(
            session.restore(history_of(session, steps))
            for session, steps in zip(sessions, lengths, strict=True)
        )
    )
    read = work.slots("read")
    at_most = engine.summary.context_steps // onnx_model.LEAST_COLUMNS + 2
    assert max(read.count(slot) for slot in range(3)) <= at_most
    # The short one came last and was done long before the others, which were done one by one.
    last = {slot: len(read) - 1 - read[::-1].index(slot) for slot in range(4)}
    assert last[3] < len(read) // 3
    first, second, third = sorted(range(3), key=last.__getitem__)
    assert last[first] < read.index(second) and last[second] < read.index(third)


async def test_one_who_waits_is_not_passed_by_those_who_come_later(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short restores again and again: a long one is finished in between."""
    session = await engine.open(SessionConfig())
    restoring = asyncio.create_task(session.restore(history_of(session, MAX_STEPS)))
    short = 0
    while not restoring.done() and short < 200:
        other = await engine.open(SessionConfig())
        await other.restore(history_of(other, 20))
        await other.close()
        short += 1
    await restoring
    assert short < 200


@pytest.mark.slow
async def test_neighbours_step_between_the_parts_of_a_new_voice(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbour = await engine.open(SessionConfig(seed=1))
    work = Work(monkeypatch)
    opening = asyncio.create_task(engine.open(SessionConfig(voice_prompt="long")))
    while not opening.done():
        neighbour.send(SILENCE)
        await anext(neighbour.steps())
    await (await opening).close()
    names = [name for name, _ in work.log]
    assert names.count("encode_alone") >= 300
    between = "".join("s" if name == "step" else "p" for name in names).strip("s").split("s")
    longest = max(map(len, between))
    # A budget of time ends a turn, so that only the largest part may be counted.
    assert longest < 100 and len(between) > 10


async def test_nobody_waits_for_work_whose_caller_has_gone(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(monkeypatch)
    opening = asyncio.create_task(engine.open(SessionConfig(voice_prompt="long")))
    for _ in range(10_000):
        if work.slots("encode_alone"):
            break
        await asyncio.sleep(0.001)
    assert engine.free_slots == 3  # taken from the beginning
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert engine.free_slots == 4
    session = await engine.open(SessionConfig())
    session.send(SILENCE)
    await anext(session.steps())
    done = len(work.slots("encode_alone"))
    session.send(SILENCE)
    await anext(session.steps())
    assert len(work.slots("encode_alone")) == done < 300


async def test_a_role_longer_than_the_context_is_refused_at_once(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(monkeypatch)
    for role in ("\U0001f600" * 8000, "hello " * 1300):
        with pytest.raises(InvalidPrompt, match="looks back on 512"):
            await engine.open(SessionConfig(text_prompt=role))
    assert engine.free_slots == 4 and not work.log


async def test_a_history_is_taken_up_once(engine: Engine) -> None:
    session = await engine.open(SessionConfig(text_prompt="hello"))
    await session.restore(history_of(session, 20))
    with pytest.raises(DuplexError, match="once"):
        await session.restore(history_of(session, 20))
    session.send(SILENCE)
    assert (await anext(session.steps())).tokens is not None
