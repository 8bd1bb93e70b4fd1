"""Phones that are heard beside the codec: the network, and what becomes of its codes."""

import shutil
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import soundfile
import soxr

from pipecat_duplex import Engine, SessionConfig
from pipecat_duplex.conversation.loudness import Spectra
from pipecat_duplex.engine.checkpoint import EMBEDDED_FOLDER
from pipecat_duplex.engine.faults import step_apart
from pipecat_duplex.engine.model import StepModel
from pipecat_duplex.engine.onnx.model import OnnxModel
from pipecat_duplex.engine.phones import FILE, PhoneHearing
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES, CheckpointError, SessionEnded

PEOPLE = Path(__file__).parent / "people"
FIRST_USER_CODE = 9
"""In a step's tokens: behind the monologue and eight codebooks of the agent's."""


def hearing(slots: int = 3) -> PhoneHearing:
    found = PhoneHearing.load("embedded", slots)
    assert found is not None
    return found


def person(name: str) -> np.ndarray:
    """A recording of somebody whom no training heard, in steps."""
    pcm, rate_hz = soundfile.read(PEOPLE / f"{name}.opus", dtype="float32")
    pcm = soxr.resample(pcm, rate_hz, SAMPLE_RATE_HZ).astype(np.float32)
    return pcm[: len(pcm) // STEP_SAMPLES * STEP_SAMPLES].reshape(-1, STEP_SAMPLES)


def heard_alone(steps: np.ndarray) -> list[int]:
    own, spectra = hearing(1), Spectra(1)
    return [own.hear(spectra.of({0: step}))[0] for step in steps]


def test_neighbours_change_nothing():
    steps = person("sentence")[:20]
    together, spectra, noise = hearing(12), Spectra(12), np.random.default_rng(0)
    codes = []
    for index, step in enumerate(steps):
        others = {slot: noise.standard_normal(STEP_SAMPLES).astype(np.float32) for slot in range(9)}
        heard = spectra.of({**(others if index > 5 else {}), 11: step})
        codes.append(together.hear(heard)[11])
    assert codes == heard_alone(steps)


def test_a_conversation_begins_afresh():
    used, steps = hearing(1), person("sentence")[:20]
    spectra = Spectra(1)
    for step in person("another")[:30]:
        used.hear(spectra.of({0: step}))
    used.join(0)
    spectra.join(0)
    assert [used.hear(spectra.of({0: step}))[0] for step in steps] == heard_alone(steps)


def test_a_checkpoint_without_one_has_none(tmp_path):
    assert PhoneHearing.load(tmp_path, 1) is None
    assert PhoneHearing.load("owner/name", 1) is None


@pytest.mark.parametrize("content", [b"", b"not one", b"PK\x03\x04", None])
def test_a_broken_file_is_told(tmp_path, content):
    if content is None:
        shutil.copy(EMBEDDED_FOLDER / "temporal.onnx", tmp_path / FILE)
    else:
        (tmp_path / FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=FILE.replace(".", r"\.")):
        PhoneHearing.load(tmp_path, 1)


class FailsForMany:
    """A model whose steps fail for more than one conversation at a time."""

    def __init__(self) -> None:
        self.told: dict[int, int] = {}

    def step(self, frames, choose_word, phone_codes):
        if len(frames) > 1:
            raise RuntimeError("too many")
        self.told |= phone_codes
        return {slot: None for slot in frames}

    def undo(self) -> None:
        pass

    keep = undo


def test_a_step_that_is_taken_apart_hears_them_too():
    model = FailsForMany()
    frames = {slot: np.zeros(STEP_SAMPLES, np.float32) for slot in range(3)}
    codes = {slot: 10 + slot for slot in range(3)}
    done = step_apart(cast(StepModel, model), frames, None, phone_codes=codes)
    assert (set(done.outputs), done.faults, model.told) == ({0, 1, 2}, {}, codes)


async def test_the_model_hears_these_codes_and_steps_tell_them():
    steps = person("sentence")[:25]
    engine = await Engine.load("embedded", suppress_echo=False, hear_barge_ins=False)
    try:
        session = await engine.open(SessionConfig.greedy())
        for pcm in steps:
            session.send(pcm)
        told: dict[int, int] = {}
        async for step in session.steps():
            if step.tokens is not None:
                told[step.index] = int(step.tokens[FIRST_USER_CODE])
            if step.index == len(steps) - 1:
                break
    finally:
        await engine.close()
    assert len(told) > 20
    assert told == {index: code for index, code in enumerate(heard_alone(steps)) if index in told}


async def test_a_step_without_anybody_is_no_fault(monkeypatch):
    """A conversation that cannot begin leaves its step empty."""
    engine = await Engine.load("embedded", slots=2)
    join = OnnxModel.join

    def fails(model, slot, config):
        if config.seed == 13:
            raise RuntimeError("this one cannot")
        join(model, slot, config)

    monkeypatch.setattr(OnnxModel, "join", fails)
    try:
        sound = np.zeros(STEP_SAMPLES, np.float32)
        broken = await engine.open(SessionConfig(seed=13))
        broken.send(sound)
        with pytest.raises(SessionEnded, match="this one cannot"):
            await anext(broken.steps())
        other = await engine.open(SessionConfig(seed=1))
        other.send(sound)
        assert (await anext(other.steps())).index == 0
    finally:
        await engine.close()
