"""The embedded model says the same on ONNX Runtime as on torch, to real speech."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipecat_duplex.commands.audio_file import read_audio
from pipecat_duplex.engine.checkpoint import EMBEDDED_FOLDER, GRAPHS
from pipecat_duplex.engine.model import SlotOutput, StepModel
from pipecat_duplex.engine.onnx import load_model as load_onnx_model
from pipecat_duplex.engine.torch import load_model as load_torch_model
from pipecat_duplex.session import STEP_SAMPLES, CheckpointError, SessionConfig
from training.onnx_graphs import write_graphs

AUDIO = sorted((Path(__file__).parents[2] / "examples" / "audio").glob("*.wav"))
STEPS = 150

MAX_DIFFERENCE_DB = -40


@pytest.fixture(scope="module")
def users() -> dict[int, np.ndarray]:
    """What each user says, shape ``(STEPS, STEP_SAMPLES)``, one for each slot."""
    users: dict[int, np.ndarray] = {}
    for slot, path in enumerate(AUDIO):
        pcm = np.zeros(STEPS * STEP_SAMPLES, np.float32)
        spoken = read_audio(path).pcm[: len(pcm)]
        pcm[: len(spoken)] = spoken
        users[slot] = pcm.reshape(STEPS, STEP_SAMPLES)
    return users


def converse(model: StepModel, users: dict[int, np.ndarray]) -> dict[int, list[SlotOutput]]:
    outputs: dict[int, list[SlotOutput]] = {slot: [] for slot in users}
    with model.running():
        for slot in users:
            model.join(slot, SessionConfig.greedy())
        for step in range(STEPS):
            frames = {slot: frames[step] for slot, frames in users.items()}
            for slot, output in model.step(frames).items():
                outputs[slot].append(output)
    return outputs


def stack(outputs: list[SlotOutput], what: Callable[[SlotOutput], np.ndarray]) -> np.ndarray:
    return np.stack([what(output) for output in outputs])


def test_same_tokens_and_same_sound(users: dict[int, np.ndarray]) -> None:
    ours = converse(load_onnx_model("embedded", len(users), cpu_threads=2), users)
    theirs = converse(load_torch_model("embedded", len(users), "cpu"), users)
    for slot in users:
        tokens, expected = (stack(side[slot], lambda o: o.tokens) for side in (ours, theirs))
        np.testing.assert_array_equal(tokens, expected, err_msg=AUDIO[slot].name)
        pcm, reference = (stack(side[slot], lambda o: o.pcm) for side in (ours, theirs))
        error, level = (np.mean(np.square(x)) for x in (pcm - reference, reference))
        assert 10 * np.log10(error / level) < MAX_DIFFERENCE_DB
    assert any(output.text_token > 3 for output in ours[0])


def test_graphs_in_the_package_are_what_the_builder_makes(tmp_path: Path) -> None:
    """New weights, or a change to the builder, and the graphs are exported again."""
    folder = Path(shutil.copytree(EMBEDDED_FOLDER, tmp_path / "embedded"))
    write_graphs(folder)
    for name in GRAPHS:
        packaged = (EMBEDDED_FOLDER / f"{name}.onnx").read_bytes()
        assert (folder / f"{name}.onnx").read_bytes() == packaged, name


def test_graphs_of_other_weights_are_refused(tmp_path: Path, checkpoint_folder: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "mixed"))
    shutil.copy(EMBEDDED_FOLDER / "encoder.onnx", folder)
    with pytest.raises(CheckpointError, match=r"encoder\.onnx"):
        load_onnx_model(folder, 1)
    (folder / "encoder.onnx").unlink()
    with pytest.raises(CheckpointError, match="no graphs"):
        load_onnx_model(folder, 1)
