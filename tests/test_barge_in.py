"""Hearing beside the model that the user wants the floor."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from benchmarks.duplex.overlap import far_away
from pipecat_duplex.conversation.barge_in import OVER_STEPS, SURE, SURE_STEPS, BargeIn, Overlap
from pipecat_duplex.conversation.loudness import BANDS, FRAMES, SILENT_STEP, Spectra, log_mel
from pipecat_duplex.conversation.pcm import level_db
from pipecat_duplex.engine import Engine
from pipecat_duplex.engine.barge_in import FILE, BargeInNetwork
from pipecat_duplex.engine.checkpoint import EMBEDDED_FOLDER
from pipecat_duplex.engine.onnx.model import OnnxModel
from pipecat_duplex.session import (
    SAMPLE_RATE_HZ,
    STEP_SAMPLES,
    TEXT_END_OF_PADDING,
    TEXT_PADDING,
    CheckpointError,
    SessionConfig,
)
from tests.pipeline import speech
from tests.test_voice import Hum, converse, told, with_engine, words_of

PEOPLE = Path(__file__).parent / "people"
SECOND = SAMPLE_RATE_HZ // STEP_SAMPLES  # steps in it
YIELD_STEPS = 9  # 0.72 s, the lead of the recording included
HIGH, LOW, MIDDLE = (Overlap(1 - floor, 0.0, floor) for floor in (0.95, 0.1, 0.5))


def decide(*heard: tuple[Overlap, bool]) -> list[int]:
    """Return the steps in which the floor is given up."""
    barge_in = BargeIn()
    told = [barge_in.step(overlap if speaks else None) for overlap, speaks in heard]
    return [step for step, gives_up in enumerate(told) if gives_up]


def test_who_begins_while_the_agent_speaks_gets_the_floor_once():
    assert decide((LOW, True), *8 * [(HIGH, True)]) == [OVER_STEPS]


def test_a_knock_is_no_voice():
    knock = [(LOW, True), *(OVER_STEPS - 1) * [(HIGH, True)]]
    assert not decide(*knock, *knock)


def test_who_still_speaks_as_the_agent_begins_has_not_talked_over_it():
    assert not decide((HIGH, False), *9 * [(HIGH, True)])


def test_nobody_talks_over_a_silent_agent():
    assert not decide((LOW, False), *9 * [(HIGH, False)])


def test_what_is_not_sure_is_waited_for():
    heard = [(LOW, True), *6 * [(MIDDLE, True)], *SURE_STEPS * [(HIGH, True)]]
    assert decide(*heard) == [len(heard) - 1]


def tone(hz: float, steps: int) -> np.ndarray:
    samples = np.arange(steps * STEP_SAMPLES) / SAMPLE_RATE_HZ
    return (0.1 * np.sin(2 * np.pi * hz * samples)).astype(np.float32).reshape(steps, -1)


def test_a_higher_tone_is_loud_in_a_higher_band():
    loudest = [
        int(log_mel(tone(hz, 2)[:1], tone(hz, 2)[1:])[0, 1].argmax()) for hz in (150, 600, 3000)
    ]
    assert loudest == sorted(set(loudest)) and loudest[-1] < BANDS


def test_steps_hear_what_one_long_sound_has():
    sound = tone(440, 6)
    before = np.concatenate([np.zeros_like(sound[:1]), sound[:-1]])
    at_once = log_mel(before, sound)
    one_by_one = [log_mel(before[i : i + 1], sound[i : i + 1])[0] for i in range(6)]
    assert at_once.shape == (6, FRAMES, BANDS)
    np.testing.assert_allclose(at_once, one_by_one, rtol=1e-5)


def network(slots: int = 3) -> BargeInNetwork:
    found = BargeInNetwork.load("embedded", slots)
    assert found is not None
    return found


def test_neighbours_hear_nothing_of_each_other():
    rng = np.random.default_rng(0)
    mels = rng.standard_normal((3, 10, FRAMES, BANDS)).astype(np.float32)
    together, alone = network(), network()
    for step in range(10):
        heard = {slot: mels[slot, step] for slot in range(3) if slot or step > 4}
        told = together.hear(heard)[1]
        np.testing.assert_allclose(told, alone.hear({1: mels[1, step]})[1], atol=1e-5)


def test_a_conversation_begins_afresh():
    used, spectra = network(), Spectra(1)
    for step in tone(300, 10):
        used.hear(spectra.of({0: step}))
    used.join(0)
    spectra.join(0)
    step = {0: tone(200, 1)[0]}
    assert used.hear(spectra.of(step))[0] == network().hear(Spectra(1).of(step))[0]


def test_silence_sounds_like_silence():
    silence = np.zeros(STEP_SAMPLES, np.float32)
    np.testing.assert_array_equal(Spectra(1).of({0: silence})[0], SILENT_STEP)


def test_a_checkpoint_without_one_has_none(tmp_path):
    assert BargeInNetwork.load(tmp_path, 1) is None
    assert BargeInNetwork.load("owner/name", 1) is None


@pytest.mark.parametrize("content", [b"", b"not one", b"PK\x03\x04", None])
def test_a_broken_file_is_told(tmp_path, content):
    if content is None:
        shutil.copy(EMBEDDED_FOLDER / "temporal.onnx", tmp_path / FILE)
    else:
        (tmp_path / FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=FILE.replace(".", r"\.")):
        BargeInNetwork.load(tmp_path, 1)


def person(name: str) -> np.ndarray:
    """A recording of somebody whom no training heard, 24 kHz, at -26 dBFS."""
    pcm, rate_hz = soundfile.read(PEOPLE / f"{name}.opus", dtype="float32")
    pcm = soxr.resample(pcm, rate_hz, SAMPLE_RATE_HZ)
    return (pcm * 0.05 / np.sqrt(np.mean(np.square(pcm)))).astype(np.float32)


def person_in_steps(name: str) -> np.ndarray:
    """The recording a step at a time, shape ``(steps, STEP_SAMPLES)``; silence ends the last."""
    pcm = person(name)
    return np.pad(pcm, (0, -len(pcm) % STEP_SAMPLES)).reshape(-1, STEP_SAMPLES)


@pytest.mark.parametrize("name", ["sentence", "another"])
def test_a_person_wants_the_floor(name):
    assert max(heard_of(person(name))) >= SURE


@pytest.mark.parametrize("name", ["right"])
def test_a_person_who_only_listens_does_not(name):
    assert max(heard_of(person(name))) < SURE


@pytest.mark.parametrize(("near", "far"), [("another", "sentence"), ("sentence", "another")])
def test_a_person_in_the_background_does_not(near, far):
    """Somebody has spoken to the agent before, so it is known how loud that is."""
    pause = np.zeros(SAMPLE_RATE_HZ, np.float32)
    background = far_away(person(far)).astype(np.float32)
    told = heard_of(np.concatenate([person(near), pause, background]))
    begun = (len(person(near)) + len(pause)) // STEP_SAMPLES
    assert gives_up(told[:begun]) and not gives_up(told[begun:])


def gives_up(floor: list[float]) -> bool:
    """Whether an agent that speaks meanwhile has to."""
    barge_in = BargeIn()
    heard = [Overlap(1.0, 0.0, 0.0), *(Overlap(1 - each, 0.0, each) for each in floor)]
    return any([barge_in.step(overlap) for overlap in heard])


def heard_of(pcm: np.ndarray) -> list[float]:
    listening, spectra = network(1), Spectra(1)
    steps = np.resize(pcm, (len(pcm) // STEP_SAMPLES + 10, STEP_SAMPLES))
    steps[len(pcm) // STEP_SAMPLES :] = 0.0
    for _ in range(10):
        listening.hear({0: SILENT_STEP})
    return [listening.hear(spectra.of({0: step}))[0].floor for step in steps]


@pytest.mark.slow
async def test_the_agent_yields_to_a_person():
    assert await steps_spoken_on(person("sentence"), hear_barge_ins=True) <= YIELD_STEPS


@pytest.mark.slow
async def test_it_tells_its_story_on_to_a_person_who_listens():
    assert await steps_spoken_on(person("right"), hear_barge_ins=True) > 2 * SECOND


def never_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the model one that speaks only when it is asked to."""
    step = OnnxModel.step

    def reluctant(model, frames, choose_word=None, **told):
        def choose(slot: int, token: int) -> int:
            own = TEXT_PADDING if token == TEXT_END_OF_PADDING else token
            return own if choose_word is None else choose_word(slot, own)

        return step(model, frames, choose, **told)

    monkeypatch.setattr(OnnxModel, "step", reluctant)


@pytest.mark.slow
@pytest.mark.parametrize("hears", [True, False])
async def test_a_person_whom_the_model_would_not_answer_is_answered(hears, monkeypatch):
    engine = await Engine.load("embedded", hear_barge_ins=hears)
    never_begins(monkeypatch)
    try:
        session = await engine.open(SessionConfig(seed=1))
        quiet = np.zeros(4 * SAMPLE_RATE_HZ, np.float32)
        sound = np.concatenate([quiet, person("sentence"), quiet, quiet])
        user = np.resize(sound, (len(sound) // STEP_SAMPLES, STEP_SAMPLES))
        steps = await converse(session, user)
    finally:
        await engine.close()
    said = words_of(steps)
    assert said.startswith("sorry") if hears else not said


@pytest.mark.slow
async def test_what_is_kept_from_the_model_is_told():
    user = [np.zeros(STEP_SAMPLES, np.float32)] * 40
    noticed = {}
    for name in ("right", "another"):
        over = person_in_steps(name)
        steps = await with_engine(Hum(), [*user, *over], {2: told("one two three four five " * 8)})
        assert not any(step.unheeded for step in steps[: len(user)])
        loud = [i for i, pcm in enumerate([*user, *over]) if level_db(pcm) > -30]
        noticed[name] = np.mean([steps[i].unheeded for i in loud])
    assert noticed["right"] == 1.0
    assert 0 < noticed["another"] < 0.5  # until it is sure


@pytest.mark.slow
async def test_a_tts_stops_and_the_story_behind_it_is_not_heard():
    user = [np.zeros(STEP_SAMPLES, np.float32)] * 40
    over = person_in_steps("sentence")
    steps = await with_engine(Hum(), [*user, *over], {2: told("one two three four five " * 8)})
    (said,) = [said for step in steps for said in step.said]
    assert said.unspoken and said.spoken == words_of(steps)
    heard = [number for number, step in enumerate(steps) if level_db(step.pcm) > -50]
    assert len(user) < max(heard) <= len(user) + YIELD_STEPS


def request() -> np.ndarray:
    """Return "tell me a story", and silence in which the story begins."""
    asked = speech("../evals/audio/tell_me_a_story", SAMPLE_RATE_HZ)
    return np.pad(asked, (6_000, 3 * SAMPLE_RATE_HZ))


async def steps_spoken_on(over: np.ndarray, **options) -> int:
    """Let it tell a story and talk over it; return for how many steps it goes on."""
    engine = await Engine.load("embedded", **options)
    try:
        session = await engine.open(SessionConfig(seed=1))
        steps, levels = session.steps(), []
        sound = np.concatenate([request(), over, np.zeros(4 * SAMPLE_RATE_HZ, np.float32)])
        for start in range(0, len(sound) - STEP_SAMPLES, STEP_SAMPLES):
            session.send(sound[start : start + STEP_SAMPLES].astype(np.float32))
            levels.append(level_db((await anext(steps)).pcm))
        onset = len(request()) // STEP_SAMPLES
        assert max(levels[onset - 2 : onset]) > -50, "it tells no story"
        pause = [max(levels[at : at + 5]) <= -50 for at in range(onset, len(levels) - 5)]
        return pause.index(True) if True in pause else len(pause)
    finally:
        await engine.close()
