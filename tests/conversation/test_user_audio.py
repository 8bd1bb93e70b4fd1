"""The user's audio: steps, their places in time, silence, and a bound on what is under way."""

import numpy as np
import pytest

from pipecat_duplex.conversation.agent_audio import AgentAudio
from pipecat_duplex.conversation.user_audio import MAX_STEPS_IN_FLIGHT, UserAudio, UserStep
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES, STEP_SECS, InvalidAudio

LOUD = np.full(STEP_SAMPLES, 0.1, np.float32)


def hear(audio: UserAudio, steps: int, *, first: int = 0, answered: bool = True) -> list[UserStep]:
    """Feed loud steps on time, and answer them at once if told so."""
    heard = []
    for i in range(first, first + steps):
        heard += audio.take(LOUD, SAMPLE_RATE_HZ, (i + 1) * STEP_SECS)
    if answered:
        for _ in heard:
            audio.note_answer()
    return heard


def test_steps_have_their_place_their_time_and_their_level():
    first, second = hear(UserAudio(), 2)
    assert (first.place, second.place) == (0, 1)
    assert (first.due_secs, second.due_secs) == pytest.approx((STEP_SECS, 2 * STEP_SECS))
    assert first.level_db == pytest.approx(-20, abs=0.1)
    assert np.array_equal(first.pcm, LOUD)


def test_a_chunk_of_any_length_becomes_steps():
    audio = UserAudio()
    audio.start(0.0)
    assert not audio.take(LOUD[:100], SAMPLE_RATE_HZ, 0.01)
    assert len(audio.take(np.tile(LOUD, 3), SAMPLE_RATE_HZ, 3 * STEP_SECS)) == 3


def test_silence_takes_the_place_of_what_does_not_come_and_keeps_what_came():
    audio = UserAudio()
    hear(audio, 1)
    audio.take(LOUD[:100], SAMPLE_RATE_HZ, 1.1 * STEP_SECS)
    first, *silent = audio.fill(5.5 * STEP_SECS)
    assert np.array_equal(first.pcm[:100], LOUD[:100]) and not first.pcm[100:].any()
    assert silent and not any(step.pcm.any() for step in silent)
    assert [step.place for step in (first, *silent)] == list(range(1, 2 + len(silent)))
    assert audio.filled_steps == 1 + len(silent)


def test_a_model_that_does_not_answer_costs_audio_but_no_time():
    audio = UserAudio()
    heard = hear(audio, MAX_STEPS_IN_FLIGHT + 40, answered=False)
    assert len(heard) == MAX_STEPS_IN_FLIGHT
    assert audio.overloaded and audio.dropped_steps == 40
    for _ in heard:
        audio.note_answer()
    later = hear(audio, 3, first=MAX_STEPS_IN_FLIGHT + 40)
    assert [step.place for step in later] == [MAX_STEPS_IN_FLIGHT + 40 + i for i in range(3)]
    assert later[0].due_secs == pytest.approx((MAX_STEPS_IN_FLIGHT + 41) * STEP_SECS)


@pytest.mark.parametrize("hole_secs", [0.5, 1.0, 1.3, 5.0, 61.0])
def test_a_hole_of_any_length_keeps_its_place_in_time(hole_secs):
    audio = UserAudio()
    hear(audio, 10)
    back_secs = 10 * STEP_SECS + hole_secs
    audio.fill(back_secs)
    step = audio.take(LOUD, SAMPLE_RATE_HZ, back_secs + STEP_SECS)[0]
    assert (step.place + 1) * STEP_SECS == pytest.approx(step.due_secs)
    assert step.due_secs == pytest.approx(back_secs + STEP_SECS, abs=2 * STEP_SECS)


def test_a_rate_that_cannot_be_is_refused_and_loses_nothing():
    audio = UserAudio()
    audio.take(LOUD[:960], SAMPLE_RATE_HZ, 0.04)
    with pytest.raises(InvalidAudio):
        audio.take(LOUD, 7, 0.05)
    (step,) = audio.take(LOUD[960:], SAMPLE_RATE_HZ, 0.08)
    assert np.array_equal(step.pcm, LOUD)


@pytest.mark.parametrize("jitter_secs", [0.0, 0.015])
@pytest.mark.parametrize("drift", [-0.003, -0.001, -0.0003, 0.0, 0.0003, 0.001, 0.003])
def test_a_clock_that_drifts_makes_no_queue_and_no_gaps(drift, jitter_secs):
    """Five minutes with a telephone whose clock is off: it plays at its own pace."""
    secs, packet_secs, rng = 300, 0.02, np.random.default_rng(1)
    user, agent = UserAudio(), AgentAudio(SAMPLE_RATE_HZ)
    packet = np.full(round(packet_secs * SAMPLE_RATE_HZ), 0.1, np.float32)
    count = round(secs / packet_secs)
    arrivals_secs = (1 + np.arange(count)) * packet_secs / (1 + drift)
    arrivals_secs = np.maximum.accumulate(arrivals_secs + rng.random(count) * jitter_secs)
    played_until_secs, queues_secs, gaps_secs = None, [], 0.0
    now_secs = 0.0

    def answer(steps: list[UserStep]) -> None:
        nonlocal played_until_secs, gaps_secs
        for step in steps:
            user.note_answer()
            sound = agent.take(step.place, LOUD, now_secs, step.due_secs)
            if agent.play(sound) is None:
                continue
            if played_until_secs is None:
                played_until_secs = now_secs + 2 * jitter_secs + 0.005
            gaps_secs += max(0.0, now_secs - played_until_secs)
            played_until_secs = max(played_until_secs, now_secs) + STEP_SECS / (1 + drift)
            queues_secs.append(played_until_secs - now_secs)

    for arrival_secs in arrivals_secs:
        wait_secs = user.secs_to_fill(now_secs)
        while wait_secs is not None and now_secs + max(0.0, wait_secs) < arrival_secs:
            now_secs += max(0.0, wait_secs) + 1e-9
            answer(user.fill(now_secs))
            wait_secs = user.secs_to_fill(now_secs)
        now_secs = arrival_secs
        answer(user.take(packet, SAMPLE_RATE_HZ, now_secs))
    assert user.filled_steps == user.dropped_steps == agent.dropped_steps == 0
    assert gaps_secs == 0
    assert max(queues_secs) - min(queues_secs) < 0.02 + 2 * jitter_secs


def test_drift_is_followed_also_after_late_audio_was_replaced_by_silence():
    """The time line is late by up to a step after that, and then comes back to the audio."""
    audio = UserAudio()
    hear(audio, 25)
    late_secs = 0.06
    for i in range(60, 60 + 1500):
        now_secs = (i + 1) * STEP_SECS * 1.001 + late_secs
        audio.fill(now_secs - STEP_SECS / 2)
        for _ in audio.take(LOUD, SAMPLE_RATE_HZ, now_secs):
            audio.note_answer()
        if i == 70:
            filled_steps = audio.filled_steps
    assert audio.filled_steps - filled_steps <= 2 and audio.dropped_steps == 0
