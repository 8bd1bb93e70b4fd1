"""The embedded model on ONNX Runtime, in the base install: torch need not be there."""

import asyncio
import subprocess
import sys

import numpy as np
import pytest

from pipecat_duplex.engine import Engine
from pipecat_duplex.engine.model import SlotOutput
from pipecat_duplex.engine.onnx import load_model
from pipecat_duplex.engine.onnx.model import OnnxModel
from pipecat_duplex.session import STEP_SAMPLES, TEXT_PADDING, SessionConfig

STEPS = 25
SLOTS = 9


def speech(seed: int) -> np.ndarray:
    """Noise of changing level, shape ``(STEPS, STEP_SAMPLES)``."""
    rng = np.random.default_rng(seed)
    levels = 10 ** rng.uniform(-3, 0, size=(STEPS, 1))
    return (rng.uniform(-1, 1, size=(STEPS, STEP_SAMPLES)) * levels).astype(np.float32)


def tokens_of(outputs: list[SlotOutput]) -> np.ndarray:
    return np.stack([output.tokens for output in outputs])


def alone(model: OnnxModel, seed: int, slot: int = 0) -> np.ndarray:
    model.join(slot, SessionConfig(seed=seed))
    return tokens_of([model.step({slot: frame})[slot] for frame in speech(seed)])


@pytest.fixture(scope="module")
def model() -> OnnxModel:
    return load_model("embedded", SLOTS, cpu_threads=2)


def test_torch_stays_out() -> None:
    code = (
        "import asyncio, sys\n"
        "from pipecat_duplex.engine import Engine\n"
        "engine = asyncio.run(Engine.load())\n"
        "print(engine.summary.runtime, 'torch' in sys.modules, 'huggingface_hub' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["onnx", "False", "False"], done.stderr


def test_first_step_is_silence(model: OnnxModel) -> None:
    model.join(3, SessionConfig(seed=1))
    first, second = (model.step({3: frame})[3] for frame in speech(1)[:2])
    assert first.text_token == TEXT_PADDING and not first.pcm.any()
    assert first.tokens.shape == (17,) and first.tokens.dtype == np.int32
    assert (first.tokens[1:9] < 0).all() and (first.tokens[9:] >= 0).all()
    assert (second.tokens >= 0).all() and np.abs(second.pcm).max() <= 1


@pytest.mark.slow
def test_neighbours_and_threads_change_nothing(model: OnnxModel) -> None:
    """Nine callers come one after another and skip steps, in one thread and in two."""
    expected = {seed: alone(model, seed) for seed in range(SLOTS)}
    assert (expected[0][1:] != expected[1][1:]).mean() > 0.3
    rng = np.random.default_rng(0)
    heard: dict[int, list[SlotOutput]] = {seed: [] for seed in range(SLOTS)}
    model.restart()
    with model.running():
        for round_number in range(10 * STEPS):
            frames = {}
            for slot, outputs in heard.items():
                if len(outputs) < STEPS and round_number >= 3 * slot and rng.random() < 0.8:
                    if not outputs:
                        model.join(slot, SessionConfig(seed=slot))
                    frames[slot] = speech(slot)[len(outputs)]
            for slot, output in model.step(frames).items():
                heard[slot].append(output)
    for seed, outputs in heard.items():
        np.testing.assert_array_equal(tokens_of(outputs), expected[seed])


def test_slot_is_clean_for_the_next_caller(model: OnnxModel) -> None:
    first = alone(model, 1)
    alone(model, 2)
    np.testing.assert_array_equal(alone(model, 1), first)
    np.testing.assert_array_equal(alone(model, 1, slot=5), first)


@pytest.mark.slow
def test_past_the_context_it_goes_on(model: OnnxModel) -> None:
    frame = speech(1)[0]
    model.join(0, SessionConfig(seed=1))
    for _ in range(model.summary.context_steps + 20):
        output = model.step({0: frame})[0]
    assert (output.tokens >= 0).all() and np.isfinite(output.pcm).all()


def test_what_goes_wrong_in_another_thread_reaches_the_caller(
    model: OnnxModel, monkeypatch
) -> None:
    def fail(*_args):
        raise RuntimeError("out of luck")

    with model.running():
        for slot in range(SLOTS):
            model.join(slot, SessionConfig(seed=slot))
        with monkeypatch.context() as patch:
            patch.setattr(model._lanes[1], "_encode", fail)
            with pytest.raises(RuntimeError, match="out of luck"):
                model.step({slot: speech(slot)[0] for slot in range(SLOTS)})
        model.restart()
        assert len(alone(model, 3)) == STEPS


async def test_two_conversations_in_one_engine() -> None:
    engine = await Engine.load(slots=2)
    try:

        async def talk() -> list[int]:
            session = await engine.open(SessionConfig(seed=5))
            for frame in speech(5):
                session.send(frame)
            tokens: list[int] = []
            async for step in session.steps():
                tokens.append(step.text_token)
                if len(tokens) == STEPS:
                    break
            await session.close()
            return tokens

        first, second = await asyncio.gather(talk(), talk())
        assert first == second == await talk()
    finally:
        await engine.close()
