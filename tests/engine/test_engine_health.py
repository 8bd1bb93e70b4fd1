"""The engine says whether it serves: it gave up, hangs, is held up, or is idle and well."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from pipecat_duplex.engine import Engine, loop
from pipecat_duplex.engine.onnx.model import OnnxModel
from pipecat_duplex.engine.preparation import Preparations
from pipecat_duplex.session import STEP_SAMPLES, BackendHealth, ReportsHealth, SessionConfig

SILENCE = np.zeros(STEP_SAMPLES, np.float32)


@pytest.fixture
async def engine(checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    monkeypatch.setattr(loop, "STUCK_SECS", 0.3)
    monkeypatch.setattr(loop, "BEAT_SECS", 0.05)
    engine = await Engine.load(checkpoint_folder, slots=2)
    yield engine
    await engine.close()


async def becomes(engine: Engine, ok: bool) -> BackendHealth:
    for _ in range(1000):
        if engine.health().ok == ok:
            break
        await asyncio.sleep(0.01)
    return engine.health()


async def test_an_idle_engine_is_well(engine: Engine) -> None:
    assert isinstance(engine, ReportsHealth)
    await engine.open(SessionConfig())
    await asyncio.sleep(0.4)  # longer than what counts as stuck
    assert (await becomes(engine, True)).lag_secs == 0


async def test_a_step_that_hangs_shows_while_it_hangs(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    come_back = threading.Event()
    step = OnnxModel.step

    def hanging(model, *args):
        come_back.wait(20)
        return step(model, *args)

    monkeypatch.setattr(OnnxModel, "step", hanging)
    session = await engine.open(SessionConfig())
    session.send(SILENCE)
    health = await becomes(engine, False)
    assert health.stuck and "step has not come back" in health.reason
    assert health.lag_secs > 0.1
    await asyncio.sleep(0.1)
    assert engine.health().lag_secs >= health.lag_secs + 0.05
    come_back.set()
    await anext(session.steps())
    await becomes(engine, True)


async def test_a_thread_that_is_held_up_shows_without_callers(engine: Engine) -> None:
    with engine._step_loop._condition:
        for _ in range(100):
            if not engine.health().ok:
                break
            await asyncio.sleep(0.05)
        health = engine.health()
    assert not health.ok and health.stuck and "done nothing" in health.reason
    await becomes(engine, True)


async def test_audio_sent_ahead_is_no_lag(engine: Engine) -> None:
    session = await engine.open(SessionConfig())
    for _ in range(60):
        session.send(SILENCE)
    worst = 0.0
    async for step in session.steps():
        worst = max(worst, engine.health().lag_secs)
        assert engine.health().ok
        if step.index == 59:
            break
    assert worst < 0.3


async def test_giving_up_is_for_good(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model, *args):
        raise RuntimeError("a broken device")

    monkeypatch.setattr(OnnxModel, "step", broken)
    for _ in range(loop.MAX_FAILURES):
        session = await engine.open(SessionConfig())
        session.send(SILENCE)
        async for _ in _until_end(session):
            pass
    health = engine.health()
    assert not health.ok and not health.stuck
    assert "a broken device" in health.reason


async def _until_end(session) -> AsyncIterator[None]:
    try:
        async for _ in session.steps():
            yield None
    except Exception:
        return


async def test_a_closed_engine_is_not_well(checkpoint_folder: Path) -> None:
    engine = await Engine.load(checkpoint_folder)
    await engine.close()
    assert engine.health() == BackendHealth(False, "the engine was closed")


async def test_an_engine_that_took_long_to_load_is_well_at_once(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading is no silence, also before the thread has shown its first sign of life."""
    warm_up, stuck_secs = OnnxModel.warm_up, 1.0

    def slow_warm_up(model: OnnxModel) -> None:
        warm_up(model)
        time.sleep(1.5 * stuck_secs)

    def slow_beginning(*arguments) -> Preparations:
        time.sleep(0.3 * stuck_secs)
        return Preparations(*arguments)

    monkeypatch.setattr(loop, "STUCK_SECS", stuck_secs)
    monkeypatch.setattr(OnnxModel, "warm_up", slow_warm_up)
    monkeypatch.setattr(loop, "Preparations", slow_beginning)
    engine = await Engine.load(checkpoint_folder)
    assert engine.health().ok, engine.health().reason
    await engine.close()
