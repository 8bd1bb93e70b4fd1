"""The agent's own voice is kept from what the model hears, and nothing else is."""

import numpy as np
import pytest

from pipecat_duplex.conversation.echo import EchoFinder, EchoSuppressor
from pipecat_duplex.conversation.pcm import level_db
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES
from tests.pipeline import speech

SILENT_DB = -60.0


def steps_of(pcm: np.ndarray) -> np.ndarray:
    return pcm[: len(pcm) // STEP_SAMPLES * STEP_SAMPLES].reshape(-1, STEP_SAMPLES)


def agent_voice() -> np.ndarray:
    """Return 6 s of a voice that is not the users'."""
    return np.tile(speech("barge_in", SAMPLE_RATE_HZ), 3)[: 6 * SAMPLE_RATE_HZ]


def delayed(pcm: np.ndarray, secs: float, level_db: float) -> np.ndarray:
    samples = round(secs * SAMPLE_RATE_HZ)
    return np.concatenate([np.zeros(samples, np.float32), pcm])[: len(pcm)] * 10 ** (level_db / 20)


def in_a_room(pcm: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the sound of a loudspeaker in a room that falls silent in 0.3 s."""
    rng = np.random.default_rng(seed)
    at_secs = np.arange(round(0.3 * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    way = 0.5 * rng.standard_normal(len(at_secs)) * 10 ** (-3 * at_secs / 0.3) / 20
    way[0] += 1
    return np.convolve(pcm, way)[: len(pcm)].astype(np.float32)


def hear(played: np.ndarray, heard: np.ndarray) -> np.ndarray:
    suppressor, out = EchoSuppressor(), []
    for sound, frame in zip(steps_of(played), steps_of(heard), strict=True):
        out.append(suppressor.hear(frame.astype(np.float32)))
        suppressor.play(sound)
    return np.concatenate(out)


@pytest.mark.parametrize("echo_db", [-6, -12, -24, -36])
@pytest.mark.parametrize("delay_secs", [0.08, 0.1234, 0.4, 0.8])
def test_an_echo_alone_is_not_heard(echo_db, delay_secs):
    played = agent_voice()
    heard = hear(played, delayed(played, delay_secs, echo_db))
    levels = [level_db(step) for step in steps_of(heard)]
    assert np.mean(np.array(levels) < SILENT_DB) > 0.9
    begun = int(delay_secs * SAMPLE_RATE_HZ) // STEP_SAMPLES + 4  # steps until it is sure
    assert max(levels[begun:]) < -45


def test_an_echo_in_a_room_is_hardly_heard():
    played = agent_voice()
    echo = delayed(in_a_room(played), 0.2, -12)
    before = np.array([level_db(step) for step in steps_of(echo)])
    after = np.array([level_db(step) for step in steps_of(hear(played, echo))])
    assert np.mean(after[before > SILENT_DB] < SILENT_DB) > 0.8


@pytest.mark.parametrize("room", [False, True])
def test_a_user_over_the_echo_is_heard(room):
    played, user = agent_voice(), np.zeros(6 * SAMPLE_RATE_HZ, np.float32)
    words = speech("question", SAMPLE_RATE_HZ)
    user[SAMPLE_RATE_HZ : SAMPLE_RATE_HZ + len(words)] = words
    echo = delayed(in_a_room(played) if room else played, 0.2, -12)
    heard = hear(played, echo + user)
    before = np.array([level_db(step) for step in steps_of(user)])
    after = np.array([level_db(step) for step in steps_of(heard)])
    loud = before > -30
    assert loud.sum() > 10 and np.mean((after - before)[loud] > -3) > 0.9


def test_audio_without_an_echo_is_the_same_array():
    played, suppressor = agent_voice(), EchoSuppressor()
    words = np.resize(speech("question", SAMPLE_RATE_HZ), len(played))
    for sound, frame in zip(steps_of(played), steps_of(words), strict=True):
        assert suppressor.hear(frame) is frame
        suppressor.play(sound)
    assert not suppressor.found


def test_an_echo_that_moves_is_followed():
    played = np.tile(agent_voice(), 2)
    echo = delayed(played, 0.2, -12)
    half = len(echo) // 2
    echo[half:] = delayed(played, 0.3, -12)[half:]
    levels = [level_db(step) for step in steps_of(hear(played, echo))]
    assert np.mean(np.array(levels) < SILENT_DB) > 0.9


def test_the_delay_is_found_to_the_sample_that_is_kept():
    played, finder, found = agent_voice(), EchoFinder(), []
    for sound, frame in zip(
        steps_of(played), steps_of(delayed(played, 0.2, -12).astype(np.float32)), strict=True
    ):
        found.append(finder.hear(frame))
        finder.play(sound)
    # 0.2 s after a sound begins; the step itself takes 0.08 s of that.
    assert {each.delay for each in found if each is not None} == {2880}


def test_noise_and_tones_are_no_echo():
    played, suppressor = agent_voice(), EchoSuppressor()
    rng, at = np.random.default_rng(0), np.arange(len(played)) / SAMPLE_RATE_HZ
    tone = 0.1 * np.sin(2 * np.pi * 120 * at)
    for noise in (0.05 * rng.standard_normal(len(played)), tone):
        for sound, frame in zip(steps_of(played), steps_of(noise.astype(np.float32)), strict=True):
            suppressor.hear(frame)
            suppressor.play(sound)
    assert not suppressor.found


@pytest.mark.parametrize("late_secs", [0.002, 0.005, 0.01, 0.02, 0.04])
def test_the_first_sounds_of_a_user_are_no_echo(late_secs):
    """Anything is like so short a sound, where the line is silent before it."""
    played = agent_voice()
    user = np.zeros_like(played)
    words = speech("question", SAMPLE_RATE_HZ)
    words = words[np.flatnonzero(np.abs(words) > 0.01)[0] :]
    for second in range(1, 5):
        at = second * SAMPLE_RATE_HZ - round(late_secs * SAMPLE_RATE_HZ)
        part = words[second * 1_000 :][: SAMPLE_RATE_HZ // 2]
        user[at : at + len(part)] = part
    np.testing.assert_array_equal(hear(played, user), user)


def test_a_knock_is_no_echo():
    played = agent_voice()
    user = np.zeros_like(played)
    at_secs = np.arange(SAMPLE_RATE_HZ // 50) / SAMPLE_RATE_HZ
    for number, hz in enumerate((80, 150, 300, 600, 1200)):
        knock = 0.3 * np.sin(2 * np.pi * hz * at_secs) * np.exp(-at_secs / 0.003)
        user[(number + 1) * SAMPLE_RATE_HZ :][: len(knock)] = knock
    np.testing.assert_array_equal(hear(played, user.astype(np.float32)), user.astype(np.float32))
