"""The order of a line's audio, and the silence ahead of an utterance."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipecat_duplex.telephony.line import (
    MAX_RESERVE_SECS,
    ULAW_SILENCE,
    InboundLine,
    OutboundLine,
)
from tests.telephony.caller import CHUNK_SAMPLES, Line


def chunk(index: int) -> bytes:
    return bytes([index % 200]) * CHUNK_SAMPLES


def push_all(line: InboundLine, arrivals: list[tuple[float, int]]) -> bytes:
    return b"".join(line.push(20.0 * index, chunk(index), secs) for secs, index in arrivals)


def chunks(audio: bytes) -> list[int | None]:
    """Return which chunk each 20 ms of the audio is; None is silence."""
    found = [audio[i : i + CHUNK_SAMPLES] for i in range(0, len(audio), CHUNK_SAMPLES)]
    return [None if part == ULAW_SILENCE * CHUNK_SAMPLES else part[0] for part in found]


def test_what_comes_in_order_goes_at_once():
    line = InboundLine()
    for index in range(50):
        assert line.push(20.0 * index, chunk(index), 0.02 * index) == chunk(index)
    assert line.lost_secs == line.late_secs == 0


def test_a_lost_chunk_is_silence_as_soon_as_the_next_one_comes():
    line = InboundLine()
    line.push(0, chunk(0), 0)
    assert chunks(line.push(40, chunk(2), 0.04)) == [None, 2]
    assert line.lost_secs == pytest.approx(0.02)


def test_a_line_that_reorders_is_waited_for():
    line = InboundLine()
    # The first chunk that is overtaken is lost; the line is known from then on.
    assert chunks(push_all(line, [(0.02, 0), (0.06, 2), (0.061, 1)])) == [0, None, 2]
    assert line.late_secs == pytest.approx(0.02)
    assert chunks(push_all(line, [(0.10, 4), (0.101, 3)])) == [3, 4]
    # What never comes is given up with the second later chunk.
    assert line.push(120, chunk(6), 0.14) == b""
    assert chunks(line.push(140, chunk(7), 0.16)) == [None, 6, 7]


def test_timestamps_may_be_a_little_off_and_missing():
    line = InboundLine()
    out = [line.push(at, chunk(i), 0.02 * i) for i, at in enumerate([3, 24, 42, None, 85])]
    assert [len(part) for part in out] == [CHUNK_SAMPLES] * 5


def test_a_pause_is_not_filled():
    line = InboundLine()
    line.push(0, chunk(0), 0)
    assert line.push(5000, chunk(1), 5.0) == chunk(1)
    assert line.lost_secs == 0
    assert line.push(0, chunk(2), 6.0) == chunk(2)  # Begun anew.


@given(
    loss=st.floats(0, 0.3),
    jitter_secs=st.floats(0, 0.2),
    reorders=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_audio_is_in_order_and_nothing_is_said_twice(loss, jitter_secs, reorders, seed):
    """Whatever the line does, each chunk stands at its own place, or silence does."""
    line = InboundLine()
    arrivals = Line(loss, jitter_secs, reorders, seed).arrivals(150)
    heard = chunks(push_all(line, arrivals))
    first = arrivals[0][1]
    assert all(found in (None, place + first) for place, found in enumerate(heard))
    late = round(line.late_secs / 0.02)
    assert heard.count(None) == round(line.lost_secs / 0.02)
    came = sum(found is not None for found in heard)
    assert came + late <= len(arrivals) <= came + late + 3  # The rest may still be waited for.


@pytest.mark.parametrize("jitter_secs", [0.0, 0.03, 0.06])
def test_lateness_is_the_jitter(jitter_secs):
    line = InboundLine()
    push_all(line, Line(jitter_secs=jitter_secs, seed=1).arrivals(500))
    assert line.lateness_secs() == pytest.approx(jitter_secs, abs=0.005)


def test_a_burst_after_a_stall_is_no_jitter():
    line = InboundLine()
    arrivals = [(max(0.5, 0.02 * (i + 1)) + 1e-5 * i, i) for i in range(200)]
    push_all(line, arrivals)
    assert line.lateness_secs() < 0.005


def send_utterance(line: OutboundLine, begin_secs: float, lateness: list[float], even=0.0) -> float:
    """Send steps of 80 ms, each late by so much; return the silence ahead of them."""
    reserves = [
        line.send(begin_secs + 0.08 * i + late, 0.08, lateness_secs=even)
        for i, late in enumerate(lateness)
    ]
    assert not any(reserves[1:])
    return reserves[0]


def test_an_even_line_has_no_reserve():
    line = OutboundLine()
    for begin in range(0, 20, 2):
        assert send_utterance(line, begin, [0.0] * 10, even=0.01) == 0
    assert line.gaps == 0


def test_an_uneven_line_is_not_torn():
    line = OutboundLine()
    rng = np.random.default_rng(0)
    for begin in range(0, 20, 2):
        assert send_utterance(line, begin, list(rng.uniform(0, 0.06, 20)), even=0.06) == 0.06
    assert line.gaps == 0


def test_what_was_torn_is_given_a_reserve():
    line = OutboundLine()
    torn = [0.0, 0.03, 0.05, 0.05]
    assert send_utterance(line, 0, torn) == 0
    assert (line.gaps, line.gap_secs) == (2, pytest.approx(0.05))
    assert send_utterance(line, 2, torn) == pytest.approx(0.05)
    assert line.gaps == 2
    # It is forgotten when it is not needed.
    assert [send_utterance(line, 4 + 2 * i, [0.0] * 4) for i in range(3)][-1] == 0


def test_a_stall_does_not_become_a_delay():
    line = OutboundLine()
    send_utterance(line, 0, [0.0, 0.15, 0.3])
    assert send_utterance(line, 3, [0.0]) <= MAX_RESERVE_SECS


def test_a_clear_begins_anew():
    line = OutboundLine()
    line.send(0.0, 2.0, lateness_secs=0.0)
    line.clear()
    assert line.send(0.1, 0.08, lateness_secs=0.05) == 0.05
