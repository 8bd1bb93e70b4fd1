"""Which frame a block of audio answers."""

import numpy as np
import pytest

from pipecat_duplex.remote.pairing import WINDOW_STEPS, Pairing
from pipecat_duplex.remote.words import PieceQueue
from pipecat_duplex.session import STEP_SECS

LATENCY_SECS = 0.13


class Line:
    """A server at the other end: each frame is answered after a while, or never."""

    def __init__(self, lead_steps: int = 1, jitter_secs: float = 0.03, seed: int = 0):
        self.pairing = Pairing(lead_steps)
        self.answers: dict[int, int | None] = {}
        self.silent: list[int] = []
        self._noise = np.random.default_rng(seed).uniform(0, jitter_secs, 100_000)
        self._lead_steps = lead_steps
        self._arrived_secs = 0.0

    def run(self, frames, *, lost=(), pace_secs=STEP_SECS, latency_secs=LATENCY_SECS):
        """Send frames at a pace; note what the answer to each is paired with."""
        events = []
        for frame in frames:
            events.append((frame * pace_secs, 0, frame))
            if frame >= self._lead_steps and frame not in lost:
                came = frame * pace_secs + latency_secs + self._noise[frame]
                self._arrived_secs = max(self._arrived_secs, came)
                events.append((self._arrived_secs, 1, frame))
        for now_secs, what, frame in sorted(events):
            if what == 0:
                index, silent = self.pairing.send(now_secs)
                assert index == frame
                if silent:
                    self.silent.append(index)
                continue
            skipped, mine = self.pairing.answer(now_secs)
            self.silent += [index for index, _ in skipped]
            self.answers[frame] = None if mine is None else mine[0]
        return self

    def shifts(self, frames) -> set[int]:
        return {frame - (self.answers[frame] or 0) for frame in frames if frame in self.answers}


@pytest.mark.parametrize("lead_steps", [0, 1, 2])
def test_a_good_line_is_paired_frame_by_frame(lead_steps):
    line = Line(lead_steps).run(range(500))
    assert line.shifts(range(500)) == {0}
    assert line.silent == list(range(lead_steps))


@pytest.mark.parametrize("lost", [{100}, {100, 101, 102}, {100, 160, 240}])
def test_a_loss_does_not_shift_the_pairing_for_ever(lost):
    line = Line().run(range(500), lost=lost)
    assert line.shifts(range(100)) == {0}
    assert line.shifts(range(max(lost) + 2 * WINDOW_STEPS + 5, 500)) == {0}
    # Each frame has one answer or silence, in order.
    told = sorted(line.silent + [i for i in line.answers.values() if i is not None])
    assert told == list(range(len(told)))


def test_jitter_is_no_loss():
    line = Line(jitter_secs=0.2).run(range(1000))
    assert line.shifts(range(1000)) == {0}


def test_a_stall_is_no_loss():
    line = Line()
    line.run(range(200))
    line._noise[200:300] = np.linspace(8, 0, 100)  # a pause, then answers in a burst
    line.run(range(200, 600))
    assert line.shifts(range(600)) == {0}


def test_faster_than_real_time_nothing_is_decided():
    line = Line(jitter_secs=0).run(range(200))
    line.run(range(200, 500), pace_secs=STEP_SECS, latency_secs=LATENCY_SECS)
    fast = Line(jitter_secs=0).run(range(500), pace_secs=0.001, latency_secs=0.5)
    assert line.shifts(range(500)) == fast.shifts(range(500)) == {0}


def test_a_block_that_nobody_asked_for_is_left_out():
    pairing = Pairing(1)
    assert pairing.answer(0.0) == ([], None)
    assert pairing.send(0.0) == (0, True)
    assert pairing.send(0.08) == (1, False)
    assert pairing.answer(0.1) == ([], (1, 0.08))
    assert pairing.answer(0.1) == ([], None)
    assert pairing.waiting == 0 and pairing.oldest_sent_secs is None


def test_texts_become_pieces_again():
    pieces = PieceQueue(strips_after_padding=False)
    for text in (" hel", "lo", "<0xE2>", "", " there you"):
        pieces.put(text)
    taken = [pieces.take() for _ in range(5)]
    assert taken == ["▁hel", "lo", "<0xE2>", "▁there▁you", None]


def test_the_rust_backend_gets_its_spaces_back():
    pieces = PieceQueue(strips_after_padding=True)
    taken = []
    for text in ("hel", "lo", " there", None, "you", ",", None, None, " two", "three", None):
        if text is not None:
            pieces.put(text)
        taken.append(pieces.take())
    assert taken == ["▁hel", "lo", "▁there", None, "▁you", ",", None, None, "▁two", "three", None]
