"""The engine as callers see it: the session contract, faults, and many at a time."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from pipecat_duplex.engine import Engine
from pipecat_duplex.engine.checkpoint import find_checkpoint
from pipecat_duplex.engine.engine import Runtime
from pipecat_duplex.engine.loop import MAX_FAILURES
from pipecat_duplex.engine.onnx import model as onnx_model
from pipecat_duplex.engine.onnx.model import OnnxModel
from pipecat_duplex.engine.session import EngineSession
from pipecat_duplex.engine.torch import checkpoint as torch_checkpoint
from pipecat_duplex.engine.torch.model import BatchedModel
from pipecat_duplex.session import (
    STEP_SAMPLES,
    STEP_SECS,
    TEXT_END_OF_PADDING,
    TEXT_PADDING,
    AtCapacity,
    CheckpointError,
    DuplexError,
    InvalidAudio,
    SessionConfig,
    SessionEnded,
    Step,
)
from pipecat_duplex.session import inbox as inbox_module
from tests.engine.scripted import noise
from tests.stalls import by_the_clock

GREEDY = SessionConfig.greedy()
MODELS = {"onnx": OnnxModel, "torch": BatchedModel}


@pytest.fixture
async def engine(checkpoint_folder: Path, runtime: Runtime) -> AsyncIterator[Engine]:
    engine = await Engine.load(checkpoint_folder, slots=2, runtime=runtime, device="cpu")
    yield engine
    await engine.close()


async def take(session: EngineSession, count: int) -> list[Step]:
    steps: list[Step] = []
    if count:
        async for step in session.steps():
            steps.append(step)
            if len(steps) == count:
                break
    return steps


async def converse(engine: Engine, audio: np.ndarray, config: SessionConfig) -> list[Step]:
    session = await engine.open(config)
    for frame in audio:
        session.send(frame)
    steps = await take(session, len(audio))
    await session.close()
    return steps


def words(steps: list[Step]) -> list[int]:
    return [step.text_token for step in steps]


async def test_one_step_for_each_send_in_order(engine: Engine) -> None:
    session = await engine.open(SessionConfig(seed=1))
    assert [session.send(frame) for frame in noise(12, seed=1)] == list(range(12))
    steps = await take(session, 12)
    assert [step.index for step in steps] == list(range(12))
    assert steps[0].text_token == TEXT_PADDING and not steps[0].pcm.any()
    for step in steps:
        assert step.pcm.shape == (STEP_SAMPLES,) and step.pcm.dtype == np.float32
        assert np.abs(step.pcm).max() <= 1
        silent = step.text_token in (TEXT_PADDING, TEXT_END_OF_PADDING)
        assert (step.text_piece is None) == silent
        assert step.timing.waited_secs >= 0 and step.timing.compute_secs > 0
    assert any(step.text_piece for step in steps) and any(step.pcm.any() for step in steps)
    assert session.send(noise(1, seed=2)[0]) == 12


async def test_caller_may_reuse_the_array(engine: Engine) -> None:
    audio = noise(10, seed=1)
    session = await engine.open(GREEDY)
    buffer = np.empty(STEP_SAMPLES, dtype=np.float32)
    for frame in audio:
        buffer[:] = frame
        session.send(buffer)
        buffer[:] = 1
    reused = await take(session, 10)
    await session.close()
    assert words(reused) == words(await converse(engine, audio, GREEDY))


async def test_company_changes_nothing(engine: Engine) -> None:
    """Four callers for two slots, one after another and beside each other."""
    configs = [GREEDY, SessionConfig(seed=3), SessionConfig(seed=3), SessionConfig(seed=4)]
    audio = noise(25, seed=1)
    alone = [words(await converse(engine, audio, config)) for config in configs]
    assert alone[1] == alone[2] != alone[3]
    for pair in ((0, 1), (2, 3)):
        together = await asyncio.gather(*(converse(engine, audio, configs[i]) for i in pair))
        assert [words(steps) for steps in together] == [alone[i] for i in pair]
    assert engine.stats().batch_steps.get(2, 0) > 0


async def test_seed_is_drawn_and_told(engine: Engine) -> None:
    session = await engine.open(SessionConfig())
    other = await engine.open(SessionConfig())
    assert session.config.seed != other.config.seed
    audio = noise(15, seed=1)
    for frame in audio:
        session.send(frame)
    steps = await take(session, 15)
    await session.close()
    again = await converse(engine, audio, SessionConfig(seed=session.config.seed))
    assert words(steps) == words(again)


async def test_full_means_at_capacity_at_once(engine: Engine) -> None:
    sessions = [await engine.open(GREEDY) for _ in range(engine.slots)]
    assert engine.free_slots == 0
    for _ in range(2):
        with pytest.raises(AtCapacity, match="2 slots"):
            await engine.open(GREEDY)
    await sessions[0].close()
    assert engine.free_slots == 1
    assert len(await converse(engine, noise(3, seed=1), GREEDY)) == 3


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros(STEP_SAMPLES),
        np.zeros(STEP_SAMPLES - 1, dtype=np.float32),
        np.zeros((1, STEP_SAMPLES), dtype=np.float32),
        np.zeros(STEP_SAMPLES, dtype=np.int16),
        np.full(STEP_SAMPLES, np.nan, dtype=np.float32),
        np.full(STEP_SAMPLES, np.inf, dtype=np.float32),
        [0.0] * STEP_SAMPLES,
        None,
    ],
)
async def test_bad_audio_touches_nothing(engine: Engine, bad) -> None:
    audio = noise(4, seed=1)
    session = await engine.open(GREEDY)
    session.send(audio[0])
    with pytest.raises(InvalidAudio):
        session.send(bad)
    assert session.send(audio[1]) == 1
    steps = await take(session, 2)
    await session.close()
    assert words(steps) == words(await converse(engine, audio[:2], GREEDY))


async def test_close_is_idempotent_and_ends_the_iterator(engine: Engine) -> None:
    session = await engine.open(GREEDY)
    consumer = asyncio.create_task(take(session, 5))
    session.send(noise(1, seed=1)[0])
    await asyncio.sleep(0)
    for _ in range(3):
        await session.close()
    assert len(await consumer) <= 1
    assert engine.free_slots == 2
    with pytest.raises(SessionEnded, match="closed"):
        session.send(noise(1, seed=1)[0])
    assert await take(session, 1) == []


async def test_session_ends_at_its_limit(engine: Engine) -> None:
    session = await engine.open(GREEDY.model_copy(update={"max_secs": 3.5 * STEP_SECS}))
    audio = noise(5, seed=1)
    assert session.secs_left == pytest.approx(4 * STEP_SECS)
    for frame in audio[:4]:
        session.send(frame)
    assert session.secs_left == 0
    with pytest.raises(SessionEnded, match="limit"):
        session.send(audio[4])
    steps = []
    with pytest.raises(SessionEnded, match="limit") as caught:
        async for step in session.steps():
            steps.append(step)
    assert len(steps) == 4
    assert caught.value.session_id == session.id
    assert engine.free_slots == 2
    await session.close()


async def test_pending_steps_are_bounded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "MAX_PENDING_STEPS", 5)
    session, other = await engine.open(GREEDY), await engine.open(GREEDY)
    audio = noise(6, seed=1)
    for frame in audio[:5]:
        session.send(frame)
    with pytest.raises(SessionEnded, match="5 steps"):
        session.send(audio[5])
    with pytest.raises(SessionEnded, match="5 steps"):
        await take(session, 6)
    assert engine.free_slots == 1
    other.send(audio[0])
    assert len(await take(other, 1)) == 1


@pytest.mark.slow
async def test_past_the_context_it_goes_on(engine: Engine) -> None:
    audio = noise(engine.summary.context_steps + 30, seed=1)
    steps = await converse(engine, audio, SessionConfig(seed=1))
    assert len(steps) == len(audio)
    assert any(step.text_piece for step in steps[engine.summary.context_steps :])


async def test_consumer_may_be_cancelled_and_go_on(engine: Engine) -> None:
    session = await engine.open(GREEDY)
    consumer = asyncio.create_task(take(session, 1))
    await asyncio.sleep(0.01)
    with pytest.raises(RuntimeError, match="consumer"):
        await take(session, 1)
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    for frame in noise(3, seed=1):
        session.send(frame)
    assert [step.index for step in await take(session, 3)] == [0, 1, 2]


class Fault:
    """Makes every step of the engine raise while it is on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, runtime: Runtime):
        self.on = False
        step = MODELS[runtime].step

        def faulty(model, frames, choose_word=None):
            outputs = step(model, frames, choose_word)
            if self.on:
                raise RuntimeError("a wire came loose\nand more")
            return outputs

        monkeypatch.setattr(MODELS[runtime], "step", faulty)


async def test_failed_step_ends_sessions_and_not_the_engine(
    engine: Engine, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    audio = noise(10, seed=1)
    expected = words(await converse(engine, audio, GREEDY))
    fault = Fault(monkeypatch, runtime)
    for _ in range(MAX_FAILURES + 1):  # a good step in between forgives
        active, idle = await engine.open(GREEDY), await engine.open(GREEDY)
        active.send(audio[0])
        assert len(await take(active, 1)) == 1
        fault.on = True
        active.send(audio[1])
        for session in (active, idle):
            with pytest.raises(SessionEnded, match=r"RuntimeError: a wire came loose$"):
                await take(session, 1)
            with pytest.raises(SessionEnded, match="a wire"):
                session.send(audio[2])
        fault.on = False
        assert engine.free_slots == 2
        await active.close()
    assert words(await converse(engine, audio, GREEDY)) == expected
    assert engine.stats().failed_steps == MAX_FAILURES + 1


async def test_engine_gives_up_after_failures_in_a_row(
    engine: Engine, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    Fault(monkeypatch, runtime).on = True
    for _ in range(MAX_FAILURES):
        session = await engine.open(GREEDY)
        session.send(noise(1, seed=1)[0])
        with pytest.raises(SessionEnded, match="a wire"):
            await take(session, 1)
    with pytest.raises(DuplexError, match="3 steps in a row failed") as caught:
        await engine.open(GREEDY)
    assert not isinstance(caught.value, AtCapacity)
    assert engine.free_slots == 0
    await session.close()
    await engine.close()


async def test_closing_the_engine_ends_sessions_with_a_reason(
    checkpoint_folder: Path, runtime: Runtime
) -> None:
    engine = await Engine.load(checkpoint_folder, runtime=runtime, device="cpu")
    assert engine.slots == 1
    session = await engine.open(GREEDY)
    consumer = asyncio.create_task(take(session, 1))
    await asyncio.sleep(0)
    await asyncio.gather(engine.close(), engine.close())
    with pytest.raises(SessionEnded, match="engine was closed"):
        await consumer
    with pytest.raises(SessionEnded, match="engine was closed"):
        session.send(noise(1, seed=1)[0])
    await session.close()
    await engine.close()
    with pytest.raises(DuplexError, match="closed"):
        await engine.open(GREEDY)
    assert engine.free_slots == 0
    assert not any(thread.name == "duplex-engine" for thread in threading.enumerate())


async def test_closing_in_the_middle_of_a_conversation(
    checkpoint_folder: Path, runtime: Runtime
) -> None:
    engine = await Engine.load(checkpoint_folder, slots=3, runtime=runtime, device="cpu")
    talks = [
        asyncio.create_task(converse(engine, noise(400, seed=i), SessionConfig(seed=i)))
        for i in range(3)
    ]
    await asyncio.sleep(0.05)
    await engine.close()
    results = await asyncio.gather(*talks, return_exceptions=True)
    assert all(isinstance(result, SessionEnded) for result in results)


async def test_callers_come_and_go(checkpoint_folder: Path, runtime: Runtime) -> None:
    """Cancelled in the middle, again and again: no slot leaks, the last caller is served well."""
    engine = await Engine.load(checkpoint_folder, slots=3, runtime=runtime, device="cpu")
    audio = noise(15, seed=1)
    expected = words(await converse(engine, audio, GREEDY))
    rng = np.random.default_rng(0)

    async def come_and_go() -> None:
        for _ in range(8):
            session = await engine.open(SessionConfig())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(float(rng.uniform(0, 0.03))):
                    for frame in audio:
                        session.send(frame)
                    await take(session, len(audio))
            await session.close()

    await asyncio.gather(*(come_and_go() for _ in range(2)), converse(engine, audio, GREEDY))
    assert engine.free_slots == 3
    assert words(await converse(engine, audio, GREEDY)) == expected
    await engine.close()


@contextlib.asynccontextmanager
async def watching_the_loop() -> AsyncIterator[list[float]]:
    """Measure for how long the asyncio loop did not come round."""
    gaps = [0.0]

    async def watch() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.005)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    task = asyncio.create_task(watch())
    await asyncio.sleep(0.02)
    yield gaps
    task.cancel()


@pytest.mark.slow
@by_the_clock
async def test_asyncio_is_never_held_up(
    checkpoint_folder: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow_secs = 2.0
    load, step = find_checkpoint, MODELS[runtime].step

    def slow_load(*args):
        time.sleep(slow_secs)
        return load(*args)

    def slow_step(model, frames, choose_word=None):
        time.sleep(slow_secs)
        return step(model, frames, choose_word)

    for module in (onnx_model, torch_checkpoint):
        monkeypatch.setattr(module, "find_checkpoint", slow_load)
    async with watching_the_loop() as gaps:
        engine = await Engine.load(checkpoint_folder, runtime=runtime, device="cpu")
        monkeypatch.setattr(MODELS[runtime], "step", slow_step)
        session = await engine.open(GREEDY)
        session.send(noise(1, seed=1)[0])
        assert len(await take(session, 1)) == 1
        session.send(noise(1, seed=1)[0])
        await engine.close()
    assert max(gaps) < slow_secs / 2


async def test_idle_engine_uses_no_cpu(engine: Engine) -> None:
    await engine.open(GREEDY)
    await converse(engine, noise(2, seed=1), GREEDY)
    started = time.process_time()
    await asyncio.sleep(0.5)
    assert time.process_time() - started < 0.1


async def test_load_errors_reach_the_caller(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        await Engine.load(tmp_path)
    with pytest.raises(ValueError, match="slot"):
        await Engine.load(tmp_path, slots=0)


async def test_cancelled_load_leaves_no_thread(checkpoint_folder: Path, runtime: Runtime) -> None:
    loading = asyncio.create_task(Engine.load(checkpoint_folder, runtime=runtime, device="cpu"))
    await asyncio.sleep(0.01)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    async with asyncio.timeout(30):
        for thread in threading.enumerate():
            if thread.name == "duplex-engine":
                await asyncio.to_thread(thread.join)


def test_engine_outlives_an_asyncio_loop(checkpoint_folder: Path, runtime: Runtime) -> None:
    engine = asyncio.run(Engine.load(checkpoint_folder, runtime=runtime, device="cpu"))

    async def abandon() -> None:
        session = await engine.open(GREEDY)
        for frame in noise(5, seed=1):
            session.send(frame)

    asyncio.run(abandon())

    async def come_later() -> list[Step]:
        for _ in range(1000):
            if engine.free_slots == 0:
                await asyncio.sleep(0.01)
        return await converse(engine, noise(5, seed=1), GREEDY)

    assert len(asyncio.run(come_later())) == 5
    asyncio.run(engine.close())


async def test_stats(engine: Engine) -> None:
    assert engine.stats().steps == 0 and engine.stats().compute_ms_p99 == 0
    await converse(engine, noise(6, seed=1), GREEDY)
    stats = engine.stats()
    assert stats.steps == stats.frames == 6 and stats.failed_steps == 0
    assert 0 < stats.compute_ms_p50 <= stats.compute_ms_p95 <= stats.compute_ms_p99
    assert stats.batch_steps == {1: 6} and stats.batch_mean == 1
