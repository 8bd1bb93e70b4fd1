"""Whatever one session brings may end that session, and never another."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from pipecat_duplex.engine import Engine
from pipecat_duplex.engine.engine import Runtime
from pipecat_duplex.engine.loop import MAX_FAILURES
from pipecat_duplex.engine.onnx.model import OnnxModel
from pipecat_duplex.engine.session import EngineSession
from pipecat_duplex.engine.torch.model import BatchedModel
from pipecat_duplex.protocol import WireError, parse_query
from pipecat_duplex.session import (
    STEP_SAMPLES,
    STEP_SECS,
    InvalidHistory,
    SessionConfig,
    SessionEnded,
    Step,
)
from pipecat_duplex.session.history import STREAMS, History
from tests.engine.scripted import noise

MODELS = {"onnx": OnnxModel, "torch": BatchedModel}
POISON = np.full(STEP_SAMPLES, 0.123, np.float32)
STEPS = 12
AUDIO = noise(STEPS, seed=1)
CONFIG = SessionConfig(seed=5)


@pytest.fixture
async def engine(checkpoint_folder: Path, runtime: Runtime) -> AsyncIterator[Engine]:
    engine = await Engine.load(checkpoint_folder, slots=4, runtime=runtime, device="cpu")
    yield engine
    await engine.close()


async def take(session: EngineSession, count: int) -> list[Step]:
    steps: list[Step] = []
    async for step in session.steps():
        steps.append(step)
        if len(steps) == count:
            break
    return steps


async def converse(session: EngineSession) -> list[int]:
    """Hold a conversation step by step, so that neighbours' steps come in between."""
    tokens: list[int] = []
    for frame in AUDIO:
        session.send(frame)
        (step,) = await take(session, 1)
        tokens += [step.text_token] if step.tokens is None else step.tokens.tolist()
    return tokens


async def alone(engine: Engine) -> list[int]:
    session = await engine.open(CONFIG)
    tokens = await converse(session)
    await session.close()
    return tokens


def poison_steps(
    monkeypatch: pytest.MonkeyPatch, runtime: Runtime, *, after: bool, times: int = 10**9
) -> None:
    """Let every step fail that :data:`POISON` is part of, before or after it was computed."""
    step, left = MODELS[runtime].step, times

    def poisoned(model, frames: Mapping[int, np.ndarray], choose_word=None):
        nonlocal left
        poisoned_now = left > 0 and any((frame == POISON).all() for frame in frames.values())
        if poisoned_now:
            left -= 1
            if after:
                step(model, frames, choose_word)
            raise RuntimeError("this frame is poison")
        return step(model, frames, choose_word)

    monkeypatch.setattr(MODELS[runtime], "step", poisoned)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_step_that_fails_for_one_session_ends_that_one(
    engine: Engine, runtime: Runtime, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await alone(engine)
    poison_steps(monkeypatch, runtime, after=after)
    neighbours = [await engine.open(CONFIG) for _ in range(2)]
    talks = [asyncio.create_task(converse(neighbour)) for neighbour in neighbours]
    for _ in range(MAX_FAILURES + 2):
        attackers = [await engine.open(SessionConfig(seed=1)) for _ in range(2)]
        for attacker in attackers:
            attacker.send(AUDIO[0])
            attacker.send(POISON)
        for attacker in attackers:
            with pytest.raises(SessionEnded, match="failed for it: RuntimeError: this frame"):
                await take(attacker, 2)
    assert [await talk for talk in talks] == [expected, expected]
    assert engine.health().ok and engine.free_slots == 2
    assert engine.stats().failed_steps >= MAX_FAILURES
    for neighbour in neighbours:
        await neighbour.close()
    assert await alone(engine) == expected


async def test_a_fault_that_does_not_come_back_ends_nobody(
    engine: Engine, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await alone(engine)
    poison_steps(monkeypatch, runtime, after=True, times=1)
    neighbour, other = await engine.open(CONFIG), await engine.open(SessionConfig(seed=1))
    talk = asyncio.create_task(converse(neighbour))
    other.send(POISON)
    assert len(await take(other, 1)) == 1
    assert await talk == expected


async def test_a_session_whose_settings_the_model_cannot_take_ends_alone(
    engine: Engine, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = MODELS[runtime].join

    def picky(model, slot, config):
        join(model, slot, config)
        if config.seed == 666:
            raise OverflowError("int too big to convert")

    monkeypatch.setattr(MODELS[runtime], "join", picky)
    expected = await alone(engine)
    neighbour, bad = await engine.open(CONFIG), await engine.open(SessionConfig(seed=666))
    talk = asyncio.create_task(converse(neighbour))
    bad.send(AUDIO[0])
    with pytest.raises(SessionEnded, match="OverflowError"):
        await take(bad, 1)
    # Neither does its preparation end anybody else.
    bad = await engine.open(SessionConfig(seed=666))
    history = _history(bad)
    with pytest.raises(SessionEnded):
        await bad.restore(history)
    assert await talk == expected and engine.free_slots == 3


@pytest.mark.parametrize("method", ["choose", "observe"])
async def test_words_that_fail_end_their_session_alone(
    engine: Engine, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await alone(engine)
    neighbour, bad = await engine.open(CONFIG), await engine.open(SessionConfig(seed=1))

    def fail(*_args):
        raise ValueError("no such word")

    monkeypatch.setattr(bad.speaker, method, fail)
    await bad.say(_a_word(bad))
    talk = asyncio.create_task(converse(neighbour))
    for frame in AUDIO[:4]:
        bad.send(frame)
    with pytest.raises(SessionEnded, match="no such word"):
        await take(bad, 4)
    assert await talk == expected


async def test_audio_out_of_all_measure_hurts_nobody_else(engine: Engine) -> None:
    expected = await alone(engine)
    neighbour, loud = await engine.open(CONFIG), await engine.open(SessionConfig(seed=1))
    talk = asyncio.create_task(converse(neighbour))
    for level in (1e38, -1e38, 1e-42, 3e4):
        loud.send(np.full(STEP_SAMPLES, level, np.float32))
    await take(loud, 4)
    assert await talk == expected


def _history(session: EngineSession, **changes) -> History:
    fields = {
        "fingerprint": session.memory.fingerprint,
        "codes": np.zeros((STREAMS, 4), np.int32),
        "complete": False,
        "audio": np.zeros((2, STEP_SAMPLES), np.float32),
    }
    return History(**(fields | changes))


def _a_word(session: EngineSession) -> str:
    pieces = session._loaded.vocabulary._pieces
    return next(piece[1:] for piece in pieces if piece and piece[0] == "▁" and piece[1:].isalpha())


@pytest.mark.parametrize(
    "name",
    ["text_top_k", "audio_top_k", "text_temperature", "audio_temperature", "max_secs", "seed"],
)
@pytest.mark.parametrize(
    "value",
    [2**63 + 1, 2**64, 10**400, -1, -(2**63) - 1, float("nan"), float("inf"), 1e308, "1e999"],
)
def test_numbers_out_of_range_are_refused_at_the_edge(name: str, value: object) -> None:
    with pytest.raises(ValueError):
        SessionConfig(**{name: value})


@pytest.mark.parametrize("name", ["text_topk", "audio_topk"])
@pytest.mark.parametrize("value", [2**63 + 1, 2**31, 0, -5, "1e3", "9" * 5000])
def test_numbers_out_of_range_are_refused_in_a_query(name: str, value: object) -> None:
    with pytest.raises(WireError, match=name):
        parse_query({name: str(value)})


@pytest.mark.parametrize("name", ["text_prompt", "voice_prompt"])
def test_half_of_a_character_is_no_prompt(name: str) -> None:
    with pytest.raises(ValueError, match=r"surrogate|unicode"):
        SessionConfig(**{name: "a\ud800"})


async def test_the_largest_numbers_that_are_taken_can_be_run(engine: Engine) -> None:
    config = SessionConfig(
        text_top_k=1_000_000,
        audio_top_k=1_000_000,
        text_temperature=10,
        audio_temperature=1e-300,
        seed=2**63 - 1,
        max_secs=1e9,
    )
    session = await engine.open(config)
    assert session.secs_left == pytest.approx(1e9)
    for frame in AUDIO[:4]:
        session.send(frame)
    assert len(await take(session, 4)) == 4


async def test_the_shortest_limit_is_a_step(engine: Engine) -> None:
    session = await engine.open(SessionConfig(max_secs=5e-324))
    assert session.secs_left == pytest.approx(STEP_SECS)
    session.send(AUDIO[0])
    assert len(await take(session, 1)) == 1
    with pytest.raises(SessionEnded, match="limit"):
        session.send(AUDIO[1])


def bad_histories() -> dict[str, dict]:
    codes, audio = np.zeros((STREAMS, 4), np.int32), np.zeros((2, STEP_SAMPLES), np.float32)
    return {
        "codes that are a list": {"codes": codes.tolist()},
        "codes of objects": {"codes": codes.astype(object)},
        "codes of bools": {"codes": codes.astype(bool)},
        "audio that is a list": {"audio": audio.tolist()},
        "audio of text": {"audio": audio.astype(str)},
        "audio of whole numbers": {"audio": audio.astype(np.int16)},
        "audio of NaN": {"audio": audio + np.nan},
        "a fingerprint that is a number": {"fingerprint": 5},
        "complete that is text": {"complete": "no"},
        "tokens below 0": {"codes": codes - 1},
        "tokens beyond 64 bits": {"codes": codes.astype(np.uint64) + np.uint64(2**64 - 1)},
        "tokens of the last stream alone": {
            "codes": codes + np.eye(STREAMS, 4, -13, np.int32) * 9999
        },
    }


async def test_what_is_no_history_is_refused_and_its_session_goes_on(engine: Engine) -> None:
    session = await engine.open(CONFIG)
    for changes in bad_histories().values():
        with pytest.raises(InvalidHistory):
            await session.restore(_history(session, **changes))
    await session.restore(_history(session))
    session.send(AUDIO[0])
    assert len(await take(session, 1)) == 1
