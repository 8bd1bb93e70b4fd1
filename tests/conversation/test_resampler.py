"""The resampler loses nothing, adds little delay, and keeps sound clean."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import fftconvolve

from benchmarks.resampling import (
    ROUTES,
    measure_group_delay_ms,
    measure_holdback,
    measure_tone,
    measure_tones,
    our_stream,
    pass_band_hz,
    run_stream,
    stop_band_db,
)
from pipecat_duplex.conversation.resampler import MAX_RATE_HZ, MIN_RATE_HZ, Resampler
from pipecat_duplex.session import InvalidAudio

USUAL_RATES = [8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000]
HARD_ROUTES = [
    (44_100, 24_000),  # 80 : 147
    (24_000, 44_100),
    (11_025, 24_000),  # 320 : 147
    (44_101, 24_000),  # No common divisor: phases are interpolated.
    (23_999, 24_000),
    (191_999, 8_009),
    (8_009, 191_999),
]

rates = st.sampled_from(USUAL_RATES) | st.integers(MIN_RATE_HZ, MAX_RATE_HZ)


def noise(samples: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, samples).astype(np.float32)


def exact(pcm: np.ndarray, in_rate: int, out_rate: int) -> np.ndarray:
    """Resample by the definition: insert zeros, filter, keep every ``down``-th sample.

    Only for few phases. The filter is read off the resampler: a 1 among zeros, seen by as many
    resamplers as there are places where it can stand between two outputs.
    """
    divisor = math.gcd(in_rate, out_rate)
    up, down = out_rate // divisor, in_rate // divisor
    length = round(0.01 * in_rate) * up
    impulse_response = np.zeros(length + down * up)
    for place in range(down):
        impulse = np.zeros(place + length // up + down, np.float32)
        impulse[place] = 1
        out = Resampler(in_rate, out_rate).push(impulse)
        times = np.arange(len(out)) * down - place * up
        known = (times >= 0) & (times < length)
        impulse_response[times[known]] = out[known]
    stuffed = np.zeros(len(pcm) * up)
    stuffed[::up] = pcm
    return fftconvolve(stuffed, impulse_response)[: len(stuffed) : down]


@pytest.mark.parametrize(("in_rate", "out_rate"), [*ROUTES, (44_100, 24_000), (24_000, 192_000)])
def test_is_the_textbook_chain_of_zeros_filter_and_decimation(in_rate, out_rate):
    pcm = noise(in_rate // 20)
    expected = exact(pcm, in_rate, out_rate)
    np.testing.assert_allclose(Resampler(in_rate, out_rate).push(pcm), expected, atol=2e-6)


@pytest.mark.parametrize(("in_rate", "out_rate"), [*ROUTES, *HARD_ROUTES])
def test_a_tone_comes_out_as_the_same_tone_later_by_the_delay(in_rate, out_rate):
    resampler = Resampler(in_rate, out_rate)
    out = resampler.push(np.sin(2 * np.pi * 1_000 * np.arange(in_rate // 4) / in_rate))
    seconds = np.arange(len(out)) / out_rate - resampler.delay_secs
    settled = seconds > resampler.delay_secs
    expected = np.sin(2 * np.pi * 1_000 * seconds)
    np.testing.assert_allclose(out[settled], expected[settled], atol=3e-4)


@settings(deadline=None, max_examples=60)
@given(
    in_rate=rates,
    out_rate=rates,
    chunks=st.lists(st.integers(0, 700) | st.sampled_from([0, 1, 2]), max_size=25),
)
def test_any_chunking_gives_the_same_output(in_rate, out_rate, chunks):
    pcm = noise(sum(chunks))
    whole = Resampler(in_rate, out_rate).push(pcm)

    resampler, parts, fed, received = Resampler(in_rate, out_rate), [], 0, 0
    for chunk in chunks:
        parts.append(resampler.push(pcm[fed : fed + chunk]))
        fed, received = fed + chunk, received + len(parts[-1])
        assert received == -(-fed * out_rate // in_rate)

    out = np.concatenate([np.empty(0, np.float32), *parts])
    assert out.dtype == whole.dtype == np.float32
    np.testing.assert_allclose(out, whole, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(in_rate=rates, out_rate=rates)
def test_every_pair_of_rates_has_little_delay_and_unit_gain(in_rate, out_rate):
    resampler = Resampler(in_rate, out_rate)
    assert (resampler.in_rate_hz, resampler.out_rate_hz) == (in_rate, out_rate)
    assert 0 <= resampler.delay_secs <= 0.005
    assert (resampler.delay_secs == 0) == (in_rate == out_rate)
    assert resampler.delay_secs * out_rate == pytest.approx(resampler.delay_samples)
    out = resampler.push(np.ones(in_rate // 50, np.float32))
    np.testing.assert_allclose(out[2 * resampler.delay_samples + 1 :], 1, atol=3e-4)


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100, 48_000])
def test_a_step_in_gives_a_step_out_each_time(rate):
    inward, outward = Resampler(rate, 24_000), Resampler(24_000, rate)
    step = np.zeros(rate * 80 // 1000, np.float32)
    for _ in range(50):
        assert len(inward.push(step)) == 1_920
        assert len(outward.push(np.zeros(1_920, np.float32))) == len(step)


def test_a_very_long_stream_does_not_drift():
    resampler = Resampler(44_100, 24_000)
    received = sum(len(resampler.push(np.zeros(44_101, np.float32))) for _ in range(120))
    assert received == -(-44_101 * 120 * 80 // 147)


def test_silence_fed_after_a_stream_brings_its_end_out():
    resampler = Resampler(8_000, 24_000)
    last = np.zeros(160, np.float32)
    last[-1] = 1
    assert np.abs(resampler.push(last)).max() < 0.01
    tail = resampler.push(np.zeros(resampler.delay_samples // 3, np.float32))
    assert tail.max() > 0.8


@pytest.mark.parametrize("route", ROUTES)
def test_nothing_is_held_back_beyond_a_delay_of_five_milliseconds(route):
    held = measure_holdback(our_stream, *route, secs=2)
    assert held.max_ms == pytest.approx(0, abs=1e-9)
    delay_ms = measure_group_delay_ms(our_stream, *route)
    assert delay_ms <= 5
    assert delay_ms == pytest.approx(1_000 * Resampler(*route).delay_secs, abs=0.01)


@pytest.mark.parametrize("route", ROUTES)
def test_an_impulse_comes_out_highest_after_the_delay(route):
    resampler = Resampler(*route)
    impulse = np.zeros(route[0] // 10, np.float32)
    impulse[route[0] // 50] = 1
    peak = int(np.argmax(run_stream(resampler.push, impulse, 37)))
    assert peak == route[1] // 50 + resampler.delay_samples


@pytest.mark.parametrize("route", ROUTES)
def test_no_alias_or_image_is_heard_and_the_pass_band_is_flat(route):
    tones = measure_tones(our_stream, *route, tones=80)
    narrower = min(route) / 2
    assert stop_band_db(tones) >= 75
    assert pass_band_hz(tones) >= 0.85 * narrower
    assert all(abs(t.gain_db) < 0.01 for t in tones if t.frequency_hz <= 0.8 * narrower)


@pytest.mark.parametrize(("in_rate", "out_rate"), HARD_ROUTES)
def test_odd_ratios_are_as_clean(in_rate, out_rate):
    narrower = min(in_rate, out_rate) / 2
    for ratio in (0.2, 0.85, 0.95, 1.0, 1.1):
        if ratio * narrower < in_rate / 2:
            tone = measure_tone(our_stream, in_rate, out_rate, ratio * narrower)
            assert tone.residue_db <= -75
            assert ratio > 0.85 or abs(tone.gain_db) < 0.1


def test_equal_rates_pass_the_audio_through():
    pcm = noise(1_000)
    resampler = Resampler(24_000, 24_000)
    assert resampler.delay_secs == 0
    np.testing.assert_array_equal(resampler.push(pcm), pcm)
    assert resampler.push(pcm.astype(np.float64)).dtype == np.float32
    assert len(resampler.push(pcm[:0])) == 0


@pytest.mark.parametrize("route", [(8_000, 24_000), (44_100, 24_000), (24_000, 24_000)])
def test_reset_begins_a_new_stream(route):
    resampler = Resampler(*route)
    first = resampler.push(noise(333))
    resampler.push(noise(12, seed=2))
    resampler.reset()
    np.testing.assert_array_equal(resampler.push(noise(333)), first)


def test_what_was_fed_may_change_afterwards():
    pcm = noise(500)
    untouched, reused = Resampler(16_000, 24_000), Resampler(16_000, 24_000)
    untouched.push(pcm)
    buffer = pcm.copy()
    reused.push(buffer)
    buffer[:] = 1
    np.testing.assert_array_equal(reused.push(pcm), untouched.push(pcm))


def test_streams_do_not_touch_each_other():
    alone, beside, other = (Resampler(48_000, 24_000) for _ in range(3))
    for seed in range(5):
        other.push(noise(960, seed=seed + 10))
        pcm = noise(960, seed=seed)
        np.testing.assert_array_equal(beside.push(pcm), alone.push(pcm))


@pytest.mark.parametrize("rate", [0, -8_000, 7_999, 192_001, 22_050.5, math.nan, math.inf])
def test_impossible_rates_are_refused_with_the_rate_in_the_message(rate):
    with pytest.raises(InvalidAudio, match=f"input sample rate .* got {rate}"):
        Resampler(rate, 24_000)
    with pytest.raises(InvalidAudio, match=f"output sample rate .* got {rate}"):
        Resampler(24_000, rate)


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, 160), np.float32), np.zeros(160, np.int16), np.float32(0)]
)
@pytest.mark.parametrize("in_rate", [8_000, 24_000])
def test_wrong_audio_is_refused_and_the_stream_goes_on(wrong, in_rate):
    resampler, undisturbed = Resampler(in_rate, 24_000), Resampler(in_rate, 24_000)
    np.testing.assert_array_equal(resampler.push(noise(100)), undisturbed.push(noise(100)))
    with pytest.raises(InvalidAudio):
        resampler.push(wrong)
    np.testing.assert_array_equal(resampler.push(noise(100)), undisturbed.push(noise(100)))
