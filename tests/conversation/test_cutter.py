"""The cutter gives every sample back once, in order, in whole steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipecat_duplex.conversation.cutter import StepCutter
from pipecat_duplex.session import STEP_SAMPLES, InvalidAudio


def ramp(begin: int, end: int) -> np.ndarray:
    """Samples that are all different, so that one lost, repeated or moved would show."""
    return np.arange(begin, end, dtype=np.float32)


def test_cuts_into_steps_of_eighty_milliseconds():
    cutter = StepCutter()
    assert cutter.push(ramp(0, 480)) == []
    assert cutter.pending_samples == 480
    steps = cutter.push(ramp(480, 4_000))
    assert [step.shape for step in steps] == [(STEP_SAMPLES,)] * 2
    np.testing.assert_array_equal(np.concatenate(steps), ramp(0, 3_840))
    assert cutter.pending_samples == 160


@settings(deadline=None)
@given(
    step_samples=st.integers(1, 60),
    pushes=st.lists(st.integers(0, 200), max_size=30),
    flush=st.booleans(),
)
def test_no_sample_is_lost_or_repeated(step_samples, pushes, flush):
    cutter, steps, fed = StepCutter(step_samples), [], 0
    for samples in pushes:
        steps += cutter.push(ramp(fed, fed + samples))
        fed += samples
        assert len(steps) == fed // step_samples
        assert cutter.pending_samples == fed % step_samples
    if flush and (rest := cutter.flush()) is not None:
        steps.append(rest)
        assert cutter.pending_samples == 0

    assert all(step.shape == (step_samples,) and step.dtype == np.float32 for step in steps)
    out = np.concatenate([np.empty(0, np.float32), *steps])
    heard = min(fed, len(out))
    assert heard == (fed if flush else fed - fed % step_samples)
    np.testing.assert_array_equal(out[:heard], ramp(0, heard))
    assert not out[heard:].any()


def test_flush_pads_with_silence_and_only_once():
    cutter = StepCutter(4)
    cutter.push(ramp(1, 3))
    np.testing.assert_array_equal(cutter.flush(), [1, 2, 0, 0])
    assert cutter.flush() is None
    np.testing.assert_array_equal(cutter.push(ramp(5, 9)), [ramp(5, 9)])
    assert cutter.flush() is None


def test_reset_forgets_what_is_pending():
    cutter = StepCutter(4)
    cutter.push(ramp(1, 4))
    cutter.reset()
    assert cutter.pending_samples == 0
    np.testing.assert_array_equal(cutter.push(ramp(5, 9)), [ramp(5, 9)])


def test_steps_share_no_memory_with_what_was_pushed():
    cutter = StepCutter(4)
    pcm = ramp(0, 6)
    (step,) = cutter.push(pcm)
    pcm[:] = -1
    np.testing.assert_array_equal(step, ramp(0, 4))
    np.testing.assert_array_equal(cutter.push(ramp(6, 8)), [ramp(4, 8)])


@pytest.mark.parametrize("wrong", [np.zeros((4, 1), np.float32), np.zeros(4, np.int16)])
def test_wrong_audio_is_refused_and_nothing_changes(wrong):
    cutter = StepCutter(4)
    cutter.push(ramp(0, 3))
    with pytest.raises(InvalidAudio):
        cutter.push(wrong)
    np.testing.assert_array_equal(cutter.push(ramp(3, 4)), [ramp(0, 4)])


def test_a_step_without_samples_is_refused():
    with pytest.raises(ValueError, match="at least one sample, got 0"):
        StepCutter(0)
