"""A step that is undone and taken again gives the same tokens and sound, in any company."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipecat_duplex.engine.engine import Runtime
from pipecat_duplex.engine.model import SlotOutput, StepModel
from pipecat_duplex.engine.onnx import load_model as load_onnx_model
from pipecat_duplex.engine.onnx.model import Lane
from pipecat_duplex.engine.torch.checkpoint import Checkpoint
from pipecat_duplex.engine.torch.model import BatchedModel
from pipecat_duplex.session import SessionConfig
from tests.engine.scripted import noise

SLOTS, STEPS = 3, 9
AUDIO = [noise(STEPS, seed=slot) for slot in range(SLOTS)]
CONFIGS = [
    SessionConfig(seed=1),
    SessionConfig.greedy(),
    SessionConfig(seed=2, audio_temperature=0),
]


@pytest.fixture(params=[1, 2], ids=["one lane", "two lanes"])
def model(
    request: pytest.FixtureRequest,
    runtime: Runtime,
    checkpoint: Checkpoint,
    checkpoint_folder: Path,
) -> Iterator[StepModel]:
    if runtime == "onnx":
        model = load_onnx_model(checkpoint_folder, SLOTS, request.param)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipecat_duplex.engine.onnx.model.MIN_ROWS_PER_THREAD", 1)
            with model.running():
                yield model
    elif request.param == 2:
        pytest.skip("torch has no lanes")
    else:
        with torch.inference_mode():
            model = BatchedModel(checkpoint, SLOTS)
            yield model
            model._streaming.close()


def talk(model: StepModel, disturb=None) -> list[dict[int, SlotOutput]]:
    """Let three conversations begin one after another; ``disturb`` comes before each step."""
    outputs = []
    for step in range(STEPS):
        if step < SLOTS:
            model.join(step, CONFIGS[step])
        frames = {slot: AUDIO[slot][step] for slot in range(min(step + 1, SLOTS))}
        if disturb is not None:
            disturb(step, frames)
        outputs.append(model.step(frames))
    for slot in range(SLOTS):
        model.leave(slot)
    return outputs


def assert_equal(ones: list[dict[int, SlotOutput]], others: list[dict[int, SlotOutput]]) -> None:
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys()
        for slot in one:
            np.testing.assert_array_equal(one[slot].tokens, other[slot].tokens)
            np.testing.assert_allclose(one[slot].pcm, other[slot].pcm, atol=1e-6)


def test_a_step_can_be_undone_and_taken_in_other_company(model: StepModel) -> None:
    expected = talk(model)

    def disturb(step: int, frames: dict[int, np.ndarray]) -> None:
        model.keep()
        model.undo()  # final already: nothing happens
        wrong = {slot: AUDIO[slot][step - 1] for slot in frames}
        model.step(wrong)
        model.undo()
        model.step({slot: frames[slot] for slot in list(frames)[:2]})
        model.undo()
        model.undo()

    assert_equal(talk(model, disturb), expected)


def test_a_step_that_fails_anywhere_in_it_can_be_taken_again(
    model: StepModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = talk(model)
    places = (
        [(Lane, name) for name in ("_encode", "_run", "speak", "_decode")]
        if not isinstance(model, BatchedModel)
        else [(BatchedModel, name) for name in ("_encode", "_bring_to_host", "_output")]
    )

    def disturb(step: int, frames: dict[int, np.ndarray]) -> None:
        for owner, name in places:
            method = getattr(owner, name)
            for after in (True, False):

                def failing(*args, method=method, after=after):
                    if after:
                        method(*args)
                    raise RuntimeError("a wire came loose")

                with pytest.MonkeyPatch.context() as patch:
                    wrapper = staticmethod(failing) if name == "_run" else failing
                    patch.setattr(owner, name, wrapper)
                    with pytest.raises(RuntimeError, match="wire"):
                        model.step(frames)
                model.undo()

    assert_equal(talk(model, disturb), expected)
