"""The embedded model says the same on ONNX Runtime as on torch, to real speech."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from pipecat_duplex.commands.audio_file import read_audio
from pipecat_duplex.engine.checkpoint import EMBEDDED_FOLDER, GRAPHS
from pipecat_duplex.engine.model import SlotOutput, StepModel
from pipecat_duplex.engine.onnx import load_model as load_onnx_model
from pipecat_duplex.engine.torch import load_model as load_torch_model
from pipecat_duplex.session import STEP_SAMPLES, TEXT_PADDING, CheckpointError, SessionConfig
from training.onnx_graphs import write_graphs
from training.speech import synthesise
from training.world import exchanges

AUDIO = sorted((Path(__file__).parents[2] / "examples" / "audio").glob("*.wav"))
AGREES = [path.stem for path in AUDIO].index("yeah_okay")  # asks nothing, is owed nothing
VOICES = ("flite:rms", "flite:awb", "espeak:en-us+f3", "espeak:en-gb+m6")
USERS = 20
STEPS = 120
SECOND_SENTENCE_STEP = 48  # often over the answer to the first

MAX_DIFFERENCE_DB = -40


@pytest.fixture(scope="module")
def users() -> dict[int, np.ndarray]:
    """What each user says, shape ``(STEPS, STEP_SAMPLES)``, one for each slot."""
    spoken = [read_audio(path).pcm for path in AUDIO]
    questions = [exchange.words for exchange in exchanges()]
    rng = np.random.default_rng(1)
    for number in range(USERS - len(spoken)):
        voice = VOICES[number % len(VOICES)]
        pcm = rng.normal(0, 0.001, STEPS * STEP_SAMPLES).astype(np.float32)
        for step in (int(rng.integers(4, 20)), SECOND_SENTENCE_STEP):
            sentence = synthesise(str(rng.choice(questions)), voice).samples
            room = pcm[step * STEP_SAMPLES :][: len(sentence)]
            room += sentence[: len(room)]
        spoken.append(pcm)
    length = STEPS * STEP_SAMPLES
    padded = [np.pad(pcm[:length], (0, max(length - len(pcm), 0))) for pcm in spoken]
    return {slot: pcm.reshape(STEPS, STEP_SAMPLES) for slot, pcm in enumerate(padded)}


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


@pytest.mark.slow
def test_same_tokens_and_same_sound(users: dict[int, np.ndarray]) -> None:
    ours = converse(load_onnx_model("embedded", len(users), cpu_threads=2), users)
    theirs = converse(load_torch_model("embedded", len(users), "cpu"), users)
    for slot in users:
        tokens, expected = (stack(side[slot], lambda o: o.tokens) for side in (ours, theirs))
        np.testing.assert_array_equal(tokens, expected, err_msg=f"user {slot}")
        pcm, reference = (stack(side[slot], lambda o: o.pcm) for side in (ours, theirs))
        error, level = (np.mean(np.square(x)) for x in (pcm - reference, reference))
        assert 10 * np.log10(error / level) < MAX_DIFFERENCE_DB
        answered = any(output.text_token > TEXT_PADDING for output in ours[slot])
        assert answered or slot == AGREES, f"user {slot}"


def test_graphs_in_the_package_are_what_the_builder_makes(tmp_path: Path) -> None:
    """New weights, or a change to the builder, and the graphs are exported again."""
    folder = Path(shutil.copytree(EMBEDDED_FOLDER, tmp_path / "embedded"))
    write_graphs(folder)
    for name in GRAPHS:
        made, packaged = (
            onnx.load(path / f"{name}.onnx", load_external_data=False)
            for path in (folder, EMBEDDED_FOLDER)
        )
        assert made.graph == packaged.graph, name
        assert list(made.metadata_props) == list(packaged.metadata_props), name


@pytest.mark.slow
def test_graphs_of_other_weights_are_refused(tmp_path: Path, checkpoint_folder: Path) -> None:
    folder = Path(shutil.copytree(checkpoint_folder, tmp_path / "mixed"))
    shutil.copy(EMBEDDED_FOLDER / "encoder.onnx", folder)
    with pytest.raises(CheckpointError, match=r"encoder\.onnx"):
        load_onnx_model(folder, 1)
    (folder / "encoder.onnx").unlink()
    with pytest.raises(CheckpointError, match="no graphs"):
        load_onnx_model(folder, 1)
