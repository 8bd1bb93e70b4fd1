"""Calls longer than the context: rebuilt in time, without a step lost, and given up cleanly."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from loguru import logger

from pipecat_duplex.engine import Engine
from pipecat_duplex.engine.engine import Runtime
from pipecat_duplex.engine.long_calls import (
    SILENT_STEPS,
    Candidate,
    Limits,
    Rebuilds,
    Recollection,
)
from pipecat_duplex.engine.model import StepModel
from pipecat_duplex.engine.onnx import load_model
from pipecat_duplex.engine.session import EngineSession
from pipecat_duplex.session import InvalidPrompt, SessionConfig, Step
from pipecat_duplex.session.history import STREAMS, History
from tests.engine.scripted import noise

CONTEXT = 100
LIMITS = Limits.of(CONTEXT)
GREEDY = SessionConfig.greedy()


def tokens(step: int) -> np.ndarray:
    return np.full(STREAMS, step, np.int32)


def recollection(steps: int, persona_frames: int = 0) -> Recollection:
    """A call of so many steps, whose codes say their number."""
    kept = Recollection(LIMITS)
    persona = np.full((STREAMS, persona_frames), 7, np.int32) if persona_frames else None
    kept.begin(persona, None)
    for step in range(steps):
        kept.take(tokens(100 + step))
    return kept


def test_a_rebuild_waits_for_a_silence_and_not_for_ever() -> None:
    early, middle, late = recollection(60), recollection(75), recollection(95)
    silence = SILENT_STEPS
    assert not early.is_due(silence)
    assert not middle.is_due(silence - 1) and middle.is_due(silence)
    assert late.is_due(0)


@pytest.mark.parametrize(
    ("persona", "steps"), [(0, 35), (20, 15), (40, 12)], ids=["none", "short", "longest"]
)
def test_the_persona_and_the_last_steps_are_remembered(persona: int, steps: int) -> None:
    call = recollection(130, persona)
    call.begin_rebuild()
    for step in range(130, 133):  # meanwhile
        call.take(tokens(100 + step))
    known = call.known()
    assert known.from_start and known.frames == persona + steps + 3
    expected = [7] * persona + list(range(230 - steps, 233))
    assert known.codes[3].tolist() == expected
    call.finish_rebuild()
    assert call.filled == known.frames + 1 < LIMITS.silent and not call.is_due(99)


def test_steps_that_are_no_longer_kept_are_noticed() -> None:
    call = recollection(130)
    call.begin_rebuild()
    for step in range(CONTEXT - LIMITS.rebuilt):
        assert call.is_kept
        call.take(tokens(step))
    call.take(tokens(1))
    assert not call.is_kept


def test_a_history_is_taken_up_with_its_persona() -> None:
    persona = np.zeros((STREAMS, 20), np.int32)
    audio = np.zeros((0, 1920), np.float32)
    for steps, complete, taken in ((40, True, 40), (60, True, 15), (60, False, 15)):
        codes = np.arange(steps, dtype=np.int32)[None].repeat(STREAMS, axis=0)
        shortened = LIMITS.shorten(persona, History("x", codes, complete, audio))
        assert shortened.complete and shortened.steps == taken
        assert shortened.codes[0, -1] == steps - 1


@pytest.fixture
async def load(runtime: Runtime, checkpoint_folder: Path) -> AsyncIterator[Callable[..., object]]:
    """Loads engines of a runtime, and closes them."""
    engines: list[Engine] = []

    async def load_engine(**options) -> Engine:
        engine = await Engine.load(checkpoint_folder, slots=2, runtime=runtime, **options)
        engines.append(engine)
        return engine

    yield load_engine
    for engine in engines:
        await engine.close()


async def talk(session: EngineSession, audio: np.ndarray) -> list[Step]:
    """Say a step, hear its answer, say the next."""
    steps: list[Step] = []
    for frame in audio:
        session.send(frame)
        steps.append(await anext(session.steps()))
    return steps


class Swaps:
    """Notes which steps of its call each rebuild has read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.steps: list[range] = []
        self.happened = asyncio.Event()
        finish, loop = Recollection.finish_rebuild, asyncio.get_running_loop()

        def finish_and_note(kept: Recollection) -> None:
            self.steps.append(range(kept._first, kept._count))
            finish(kept)
            loop.call_soon_threadsafe(self.happened.set)

        monkeypatch.setattr(Recollection, "finish_rebuild", finish_and_note)


async def test_a_rebuilt_session_loses_no_step_and_goes_on_as_a_restored_one(
    load, monkeypatch: pytest.MonkeyPatch
) -> None:
    swaps = Swaps(monkeypatch)
    engine = await load(long_calls="rebuild")
    config = SessionConfig.greedy(text_prompt="hello i can help")
    session = await engine.open(config)
    audio = noise(220, seed=1)
    steps = await talk(session, audio)
    assert [step.index for step in steps] == list(range(220))
    assert engine.stats().rebuilds == len(swaps.steps) >= 3
    # What was sampled before the swap is said in the step after it.
    begin, end = swaps.steps[-1].start, swaps.steps[-1].stop + 1
    codes = np.stack([step.tokens for step in steps], axis=1)
    history = History(session.memory.fingerprint, codes[:, begin:end], True, audio[end - 50 : end])
    restored = await engine.open(config)
    await restored.restore(history)
    rest = await talk(restored, audio[end:])
    agent = np.stack([step.tokens for step in rest], axis=1)[:9]
    np.testing.assert_array_equal(agent, codes[:9, end:])
    await session.close()
    await restored.close()


async def test_a_rebuild_needs_no_further_frames(load, monkeypatch: pytest.MonkeyPatch) -> None:
    swaps = Swaps(monkeypatch)
    engine = await load(long_calls="rebuild")
    session = await engine.open(GREEDY)
    await talk(session, noise(LIMITS.latest, seed=2))
    await asyncio.wait_for(swaps.happened.wait(), 20)
    steps = await talk(session, noise(5, seed=3))
    assert [step.index for step in steps] == list(range(LIMITS.latest, LIMITS.latest + 5))


async def test_a_call_that_ends_in_its_rebuild_leaves_a_clean_slot(
    load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipecat_duplex.engine.onnx.model.REBUILD_COLUMNS", 1)
    monkeypatch.setattr("pipecat_duplex.engine.torch.model.REBUILD_PASS_STEPS", 1)
    engine = await load(long_calls="rebuild")
    audio = noise(40, seed=4)
    alone = await engine.open(GREEDY)
    fresh = await talk(alone, audio)
    await alone.close()
    long = await engine.open(GREEDY)
    await talk(long, noise(LIMITS.latest, seed=2))
    await long.close()
    sessions = [await engine.open(GREEDY) for _ in range(2)]
    for session in sessions:
        said = [step.text_token for step in await talk(session, audio)]
        assert said == [step.text_token for step in fresh]
    assert engine.stats().rebuilds <= 1


async def test_a_neighbour_says_the_same_beside_a_rebuild(load) -> None:
    spoken = []
    for long_calls in ("ring", "rebuild"):
        engine = await load(long_calls=long_calls)
        long = await engine.open(SessionConfig(seed=1))
        await talk(long, noise(80, seed=2))
        neighbour = await engine.open(SessionConfig(seed=3))
        both = np.stack([noise(50, seed=4), noise(50, seed=5)], axis=1)
        said = []
        for mine, theirs in both:
            long.send(mine)
            neighbour.send(theirs)
            await anext(long.steps())
            said.append(await anext(neighbour.steps()))
        assert (engine.stats().rebuilds > 0) == (long_calls == "rebuild")
        spoken.append(said)
        await engine.close()
    for one, other in zip(*spoken, strict=True):
        assert one.text_token == other.text_token
        np.testing.assert_array_equal(one.pcm, other.pcm)


@pytest.mark.slow
async def test_a_persona_that_is_forgotten_is_told_once(load) -> None:
    told: list[str] = []
    sink = logger.add(told.append, level="WARNING", format="{message}")
    try:
        for long_calls in ("ring", "rebuild"):
            engine = await load(long_calls=long_calls)
            for prompt in ("hello i can help", None):
                session = await engine.open(SessionConfig.greedy(text_prompt=prompt))
                await talk(session, noise(CONTEXT + 5, seed=1))
                await session.close()
    finally:
        logger.remove(sink)
    assert len(told) == 1 and "its persona is forgotten" in told[0]


async def test_a_persona_that_leaves_no_room_is_refused(load) -> None:
    engine = await load(long_calls="rebuild")
    with pytest.raises(InvalidPrompt, match="it may take 40"):
        await engine.open(SessionConfig(text_prompt="hello i can help you " * 8))
    assert engine.free_slots == 2
    with pytest.raises(ValueError, match="ring, rebuild"):
        await load(long_calls="forever")


class Seat:
    """A call in slot 0 of a model, and what is kept of it."""

    def __init__(self, model: StepModel, audio: np.ndarray):
        self._model = model
        self._audio = iter(audio)
        self.kept = Recollection(LIMITS)
        self.said: list[np.ndarray] = []
        model.join(0, GREEDY)

    def step(self, steps: int = 1) -> None:
        for _ in range(steps):
            output = self._model.step({0: next(self._audio)})[0]
            self.kept.take(None if output.is_silence else output.tokens)
            self.said.append(output.tokens)

    def candidates(self) -> dict[int, Candidate]:
        return {0: Candidate("test", self.kept, 0)}


def test_a_rebuild_is_given_up_when_its_call_ends(checkpoint_folder: Path) -> None:
    model = load_model(checkpoint_folder, 2)
    audio = noise(130, seed=6)
    calm = Seat(model, audio)
    calm.step(130)
    rebuilds = Rebuilds(model)
    first = Seat(model, audio)
    first.step(96)
    assert rebuilds.run(first.candidates(), 0) == 0 and rebuilds.is_busy
    assert rebuilds.run({}, 0) == 0 and not rebuilds.is_busy
    # Somebody else has taken the seat.
    assert rebuilds.run(first.candidates(), 0) == 0 and rebuilds.is_busy
    second = Seat(model, audio)
    second.step(20)
    assert rebuilds.run(second.candidates(), 0) == 0 and not rebuilds.is_busy
    second.step(110)
    np.testing.assert_array_equal(second.said, calm.said)


def test_a_rebuild_that_fails_is_told_and_not_tried_again(
    checkpoint_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(checkpoint_folder, 1)
    seat = Seat(model, noise(120, seed=7))
    seat.step(96)

    def fail(*_):
        raise MemoryError("no room")
        yield

    monkeypatch.setattr(model, "rebuild", fail)
    told: list[str] = []
    sink = logger.add(told.append, level="ERROR", format="{message}")
    rebuilds = Rebuilds(model)
    for _ in range(3):
        assert rebuilds.run(seat.candidates(), 1) == 0 and not rebuilds.is_busy
    logger.remove(sink)
    assert len(told) == 1 and "Session test could not be rebuilt" in told[0]
    seat.step(5)


def test_who_has_filled_most_comes_first(checkpoint_folder: Path) -> None:
    model = load_model(checkpoint_folder, 1)
    seat = Seat(model, noise(120, seed=7))
    seat.step(99)
    others = {slot: Candidate("other", recollection(96), 0) for slot in (1, 2)}
    rebuilds = Rebuilds(model)
    rebuilds.run(others | seat.candidates(), 0)
    while seat.kept.filled > LIMITS.silent:
        rebuilds.run(others | seat.candidates(), 0)
    assert [each.recollection.filled for each in others.values()] == [97, 97]
