"""The agent's audio: what is heard of it, what is left out, and how it goes on after that."""

import numpy as np
import pytest

from pipecat_duplex.conversation.agent_audio import FADE_IN_SAMPLES, AgentAudio
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES, STEP_SECS

LOUD = np.full(STEP_SAMPLES, 0.1, np.float32)


def play(audio: AgentAudio, place: int, late_secs: float = 0.0) -> np.ndarray | None:
    due_secs = (place + 1) * STEP_SECS
    return audio.play(audio.take(place, LOUD, due_secs + late_secs, due_secs))


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_000, 44_100, 48_000])
def test_a_step_is_80_ms_at_any_rate(rate_hz):
    audio = AgentAudio(rate_hz)
    assert audio.rate_hz == rate_hz
    for place in range(3):
        pcm = play(audio, place)
        assert pcm is not None and len(pcm) == round(rate_hz * STEP_SECS)


def test_what_is_too_old_is_left_out_and_the_next_step_fades_in():
    audio = AgentAudio(SAMPLE_RATE_HZ)
    for place in range(10):
        assert play(audio, place) is not None
    assert play(audio, 10, late_secs=1.0) is None
    assert audio.dropped_steps == 1 and audio.lag_secs > 0.9
    assert audio.was_left_out(10) and not audio.was_left_out(9)
    pcm = play(audio, 30)
    assert (
        pcm is not None
        and pcm[0] == 0
        and np.array_equal(pcm[FADE_IN_SAMPLES:], LOUD[FADE_IN_SAMPLES:])
    )
    assert play(audio, 31)[0] == pytest.approx(0.1)
    audio.end_utterance()
    assert not audio.was_left_out(10)


def test_silence_is_left_out_first_where_sound_waits():
    audio = AgentAudio(SAMPLE_RATE_HZ)
    for place in range(3):  # Three steps at once: the third waits for two.
        sound = audio.take(place, LOUD, 3 * STEP_SECS, (place + 1) * STEP_SECS)
        assert audio.play(sound) is not None
    silent = audio.take(3, np.zeros_like(LOUD), 3 * STEP_SECS, 4 * STEP_SECS)
    assert audio.play(silent) is None


def test_what_was_flushed_makes_nobody_wait():
    audio = AgentAudio(SAMPLE_RATE_HZ)
    for place in range(3):
        audio.play(audio.take(place, LOUD, 0.0, 0.0))
    audio.flush()
    sound = audio.take(3, np.zeros_like(LOUD), 0.0, 0.0)
    assert audio.play(sound) is not None and audio.lag_secs == 0
