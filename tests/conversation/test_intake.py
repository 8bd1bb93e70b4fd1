"""From chunks of any rate to steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipecat_duplex.conversation.intake import Intake
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES, InvalidAudio


def sine(rate_hz: int, secs: float, hz: float = 440.0, start_secs: float = 0.0) -> np.ndarray:
    t = start_secs + np.arange(round(rate_hz * secs)) / rate_hz
    return np.sin(2 * np.pi * hz * t).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 24_000, 44_100, 48_000])
def test_a_second_is_a_second(rate_hz):
    intake = Intake()
    steps = intake.push(sine(rate_hz, 1.0), rate_hz)
    assert len(steps) == 12
    rest = intake.flush()
    assert rest is not None and rest.shape == (STEP_SAMPLES,)


def test_bad_rate_loses_nothing():
    intake = Intake()
    intake.push(np.ones(100, np.float32), 24_000)
    with pytest.raises(InvalidAudio):
        intake.push(np.ones(100, np.float32), 7)
    steps = intake.push(np.ones(STEP_SAMPLES - 100, np.float32), 24_000)
    assert len(steps) == 1 and np.all(steps[0] == 1)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([8_000, 16_000, 48_000]), st.integers(20, 300)),
        min_size=1,
        max_size=8,
    )
)
def test_changing_rates_keep_one_unbroken_tone(parts):
    """A tone that changes its rate again and again stays the same tone, at the same time."""
    intake = Intake()
    out, secs, seams = [], 0.0, []
    for rate_hz, ms in parts:
        seams.append(secs)
        chunk = sine(rate_hz, ms / 1000, start_secs=secs)
        secs += len(chunk) / rate_hz
        out += intake.push(chunk, rate_hz)
    rest = intake.flush()
    out += [] if rest is None else [rest]
    heard = np.concatenate(out) if out else np.zeros(0, np.float32)
    expected_samples = round(secs * SAMPLE_RATE_HZ)
    assert 0 <= len(heard) - expected_samples < STEP_SAMPLES + 2 * len(parts)
    delay = 0.004
    t = np.arange(expected_samples) / SAMPLE_RATE_HZ - delay
    expected = np.sin(2 * np.pi * 440.0 * t)
    error = np.abs(heard[:expected_samples] - expected)
    # Filters of different bandwidth cannot meet without a trace: it is one filter length long.
    near = np.zeros(expected_samples, bool)
    for seam in seams:
        near |= np.abs(t - seam) < 0.0045
    assert error[~near].max(initial=0) < 0.01
