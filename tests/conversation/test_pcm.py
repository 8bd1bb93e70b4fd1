"""Samples keep their value between bytes and floats."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipecat_duplex.conversation.pcm import (
    SILENCE_DB,
    as_mono,
    float_to_pcm16,
    level_db,
    pcm16_to_float,
)
from pipecat_duplex.session import InvalidAudio

pcm16 = st.lists(st.integers(-32_768, 32_767), max_size=200)


@settings(deadline=None)
@given(pcm16)
def test_bytes_survive_the_way_to_floats_and_back(samples):
    encoded = struct.pack(f"<{len(samples)}h", *samples)
    pcm = pcm16_to_float(encoded, channels=1)
    assert pcm.dtype == np.float32
    np.testing.assert_array_equal(pcm, np.array(samples) / 32_768)
    assert float_to_pcm16(pcm) == encoded


@settings(deadline=None)
@given(arrays.arrays(np.float32, st.integers(0, 50), elements=st.floats(width=32)))
def test_any_float_becomes_the_nearest_sample(pcm):
    samples = struct.unpack(f"<{len(pcm)}h", float_to_pcm16(pcm))
    for value, sample in zip(pcm, samples, strict=True):
        wanted = 0 if math.isnan(value) else min(32_767, max(-32_768, float(value) * 32_768))
        assert abs(sample - wanted) <= 0.5


@settings(deadline=None)
@given(st.integers(1, 6), pcm16)
def test_channels_are_averaged(channels, samples):
    samples = samples[: len(samples) // channels * channels]
    mono = pcm16_to_float(struct.pack(f"<{len(samples)}h", *samples), channels)
    assert mono.dtype == np.float32
    expected = np.array(samples).reshape(-1, channels).mean(axis=1) / 32_768
    np.testing.assert_allclose(mono, expected, atol=1e-6)


def test_stereo_silence_on_one_side_halves_the_other():
    mono = pcm16_to_float(struct.pack("<4h", 16_384, 0, 0, -8), 2)
    np.testing.assert_array_equal(mono, [0.25, -4 / 32_768])


@pytest.mark.parametrize(
    ("size", "channels"), [(1, 1), (3, 1), (2, 2), (6, 2), (5, 2), (4, 0), (4, -1)]
)
def test_bytes_that_end_within_a_sample_are_refused(size, channels):
    with pytest.raises(InvalidAudio):
        pcm16_to_float(bytes(size), channels)


def test_levels_are_in_dbfs():
    seconds = np.arange(24_000) / 24_000
    assert level_db(np.ones(100, np.float32)) == 0
    assert level_db(np.full(100, 0.1, np.float32)) == pytest.approx(-20, abs=1e-4)
    assert level_db(np.sin(2 * np.pi * 440 * seconds)) == pytest.approx(-3.01, abs=0.01)


@pytest.mark.parametrize("pcm", [np.zeros(10), np.full(10, 1e-9), np.empty(0), np.full(3, np.nan)])
def test_no_level_is_below_that_of_silence(pcm):
    assert level_db(pcm) == SILENCE_DB == -120


@pytest.mark.parametrize(
    "wrong", [np.zeros((1, 4), np.float32), np.zeros(4, np.int16), np.zeros(())]
)
@pytest.mark.parametrize("function", [as_mono, float_to_pcm16, level_db])
def test_only_mono_floats_are_taken(function, wrong):
    with pytest.raises(InvalidAudio):
        function(wrong)
