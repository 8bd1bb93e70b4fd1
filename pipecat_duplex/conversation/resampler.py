"""Changes the sample rate of a stream with a few milliseconds of delay.

A stream resampler that looks far ahead holds audio back, and a full-duplex conversation has no time
to spare. This one is a polyphase FIR filter (R. E. Crochiere and L. R. Rabiner, *Multirate Digital
Signal Processing*, 1983, chapter 3): a symmetric low-pass of 8 ms, of which 4 ms lie ahead of the
sample it computes. The low-pass is a sinc under a Kaiser window (J. F. Kaiser, "Nonrecursive
digital filter design using the I0-sinh window function", 1974).
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pipecat_duplex.conversation.pcm import as_mono
from pipecat_duplex.session import InvalidAudio

MIN_RATE_HZ = 8_000
"""Lowest sample rate that a :class:`Resampler` takes."""

MAX_RATE_HZ = 192_000
"""Highest sample rate that a :class:`Resampler` takes."""

DELAY_SECS = 0.004
"""Delay of the filter, rounded to a whole output sample. Twice this is its length."""

STOP_BAND_DB = 80.0
"""Attenuation the filter is designed for, above the narrower of the two Nyquist frequencies."""

_MAX_PHASES = 512
# Filters kept ready for the next stream; the largest takes 3 MB.
_CACHED_BANKS = 16
# Up to this many phases, a matrix for a block of outputs is small enough.
_MAX_BLOCK_PHASES = 16
# About how many outputs a block has.
_BLOCK_SAMPLES = 64
# Of one matrix product: with more, OpenBLAS would wake other threads, which costs more than that.
_MOST_PRODUCTS = 200_000
# Gathered at a time: small enough for the processor's cache and for malloc to reuse the block.
_GATHERED_SAMPLES = 1 << 15


class Resampler:
    """Resamples one stream of mono audio, in chunks of any length.

    Output sample ``m`` stands at input time ``m / out_rate_hz - delay_secs``; before its first
    sample the stream counts as silent. After ``n`` input samples, ``ceil(n * out_rate_hz /
    in_rate_hz)`` output samples have come out, for any chunks: nothing is held back
    beyond the delay. For rates of which 80 ms are a whole number of samples (8, 16, 24, 44.1,
    48 kHz and others), 80 ms in give exactly 80 ms out.

    The last ``delay_samples`` of a stream come out when as much silence is fed after it.

    Equal rates pass the audio through without delay.
    """

    def __init__(self, in_rate_hz: int, out_rate_hz: int):
        """Initialize the resampler at the start of a stream.

        Args:
            in_rate_hz: Sample rate of what is fed in.
            out_rate_hz: Sample rate of what comes out.

        Raises:
            InvalidAudio: A rate is not a whole number from :data:`MIN_RATE_HZ` to
                :data:`MAX_RATE_HZ`.
        """
        _check_rate("input", in_rate_hz)
        _check_rate("output", out_rate_hz)
        self._in_rate_hz = int(in_rate_hz)
        self._out_rate_hz = int(out_rate_hz)
        divisor = math.gcd(self._in_rate_hz, self._out_rate_hz)
        # Time is counted in units of 1 / (in_rate_hz * up): an input sample is `up` of them, an
        # output sample `down`. Whole numbers, so that no stream is long enough to drift.
        self._up = self._out_rate_hz // divisor
        self._down = self._in_rate_hz // divisor
        self._bank = None if self._up == self._down else _bank(self._in_rate_hz, self._out_rate_hz)
        self.reset()

    @property
    def in_rate_hz(self) -> int:
        """Sample rate of what is fed in."""
        return self._in_rate_hz

    @property
    def out_rate_hz(self) -> int:
        """Sample rate of what comes out."""
        return self._out_rate_hz

    @property
    def delay_samples(self) -> int:
        """Delay between input and output in output samples, at every frequency."""
        return self._bank.delay_samples if self._bank else 0

    @property
    def delay_secs(self) -> float:
        """Delay between input and output in seconds, at every frequency."""
        return self.delay_samples / self._out_rate_hz

    def reset(self) -> None:
        """Forget the stream, as at the start of a new one."""
        history = self._bank.taps - 1 if self._bank else 0
        self._history = np.zeros(history, np.float32)
        # From the next input sample to the next output sample, in the units above; never negative.
        self._ahead = 0

    def push(self, pcm: np.ndarray) -> np.ndarray:
        """Take audio in and return all the output that it makes possible.

        Args:
            pcm: Floating point, shape ``(n,)``, any ``n``, also 0.

        Returns:
            Float32, one-dimensional. With equal rates, a float32 input is returned as it is.

        Raises:
            InvalidAudio: Wrong shape or type; the stream is not changed.
        """
        pcm = as_mono(pcm)
        if self._bank is None:
            return pcm
        span = len(pcm) * self._up
        count = max(0, -((self._ahead - span) // self._down))
        samples = np.concatenate([self._history, pcm])
        out = np.zeros(count, np.float32)
        if count and samples.any():  # Silence is noticed sooner than it is filtered.
            if self._up <= _MAX_BLOCK_PHASES:
                self._filter_by_block(self._bank, samples, out)
            else:
                windows = sliding_window_view(samples, self._bank.taps)
                self._filter_gathered(self._bank, windows, out)
        # A copy: a view would keep a long chunk alive for the sake of its end.
        self._history = samples[len(pcm) :].copy()
        self._ahead += count * self._down - span
        return out

    def _filter_by_block(self, bank: "_Bank", samples: np.ndarray, out: np.ndarray) -> None:
        """Fill ``out`` block by block: the filter is a matrix, the same for each block of outputs.

        A block is some outputs of every phase. It is a product of the input that it needs with the
        taps of all of its outputs, which is several times as fast as one sum an output.
        """
        start, phase = divmod(self._ahead, self._up)
        matrix, step = _block(bank, self._up, self._down, phase)
        length, width = matrix.shape
        blocks = -(-len(out) // width)
        missing = start + (blocks - 1) * step + length - len(samples)
        if missing > 0:  # for outputs of the last block that nobody wants yet
            samples = np.concatenate([samples, np.zeros(missing, np.float32)])
        stretches = sliding_window_view(samples, length)[start::step][:blocks]
        at_once = max(1, _MOST_PRODUCTS // matrix.size)
        for first in range(0, blocks, at_once):
            part = np.ascontiguousarray(stretches[first : first + at_once]) @ matrix
            begin = first * width
            out[begin : begin + part.size] = part.ravel()[: len(out) - begin]

    def _filter_gathered(self, bank: "_Bank", windows: np.ndarray, out: np.ndarray) -> None:
        """Fill ``out`` for ratios of many phases: gather the window and the taps of each output."""
        tile = max(1, _GATHERED_SAMPLES // bank.taps)
        for begin in range(0, len(out), tile):
            part = out[begin : begin + tile]
            ahead = self._ahead + self._down * np.arange(begin, begin + len(part), dtype=np.int64)
            start, phase = np.divmod(ahead, self._up)
            gathered = windows[start]
            if bank.phases == self._up:
                np.einsum("ij,ij->i", gathered, bank.rows[phase], out=part)
                continue
            row, rest = np.divmod(phase * bank.phases, self._up)
            low = np.einsum("ij,ij->i", gathered, bank.rows[row])
            high = np.einsum("ij,ij->i", gathered, bank.rows[row + 1])
            part[:] = low + (high - low) * (rest / self._up)


@dataclass(frozen=True, eq=False)
class _Bank:
    """A low-pass filter, cut into the phases that a ratio of rates needs.

    Parameters:
        rows: Taps of each phase, in the order of the samples they meet; float32, shape
            ``(phases + 1, taps)``. Row ``p`` belongs to outputs that lie ``p / phases`` of an
            input sample after the last sample of their window.
        delay_samples: Delay of the filter in output samples.
    """

    rows: np.ndarray
    delay_samples: int

    @property
    def phases(self) -> int:
        return self.rows.shape[0] - 1

    @property
    def taps(self) -> int:
        return self.rows.shape[1]


@lru_cache(maxsize=_CACHED_BANKS)
def _bank(in_rate_hz: int, out_rate_hz: int) -> _Bank:
    """Design the filter for a pair of rates.

    A ratio of small numbers gets a row for each of its phases. Where the rates hardly divide
    (44,101 to 24,000 Hz has 24,000 phases), 512 rows are laid out and the resampler interpolates
    between neighbours. That is wrong by at most (pi / 512)^2 / 8, or -106 dB (J. O. Smith, *Digital
    Audio Resampling*, section on linear interpolation of the filter table).
    """
    delay_samples = round(DELAY_SECS * out_rate_hz)
    phases = min(out_rate_hz // math.gcd(in_rate_hz, out_rate_hz), _MAX_PHASES)
    half_length = delay_samples * in_rate_hz / out_rate_hz
    taps = math.floor(2 * half_length) + 1
    # Input samples from each tap's sample to the output sample, less the delay.
    age = np.arange(taps - 1, -1, -1) + np.arange(phases + 1)[:, None] / phases
    rows = _low_pass(
        age - half_length, half_length, min(in_rate_hz, out_rate_hz) / (2 * in_rate_hz)
    )
    # One input sample in is one input sample's worth of sound out: the mean gain at 0 Hz is 1.
    rows /= rows[:phases].sum(axis=1).mean()
    rows = rows.astype(np.float32)
    rows.flags.writeable = False
    return _Bank(rows, delay_samples)


@lru_cache(maxsize=_CACHED_BANKS)
def _block(bank: _Bank, up: int, down: int, phase: int) -> tuple[np.ndarray, int]:
    """Return the matrix that filters a block of outputs whose first one has this phase.

    Returns:
        Float32, shape ``(input samples, outputs)``, and the input samples from one block to the
        next.
    """
    rounds = -(-_BLOCK_SAMPLES // up)
    starts, phases = np.divmod(phase + down * np.arange(rounds * up), up)
    matrix = np.zeros((bank.taps + int(starts[-1]), rounds * up), np.float32)
    for output, (start, row) in enumerate(zip(starts, phases, strict=True)):
        matrix[start : start + bank.taps, output] = bank.rows[row]
    matrix.flags.writeable = False
    return matrix, rounds * down


def _low_pass(time: np.ndarray, half_length: float, stop: float) -> np.ndarray:
    """Return a Kaiser-windowed sinc whose stop band begins at ``stop``.

    Kaiser's formulas: ``beta = 0.1102 (A - 8.7)`` for an attenuation of ``A`` > 50 dB, which a
    filter of length ``T`` reaches over a transition band of ``(A - 7.95) / (2.285 * 2 pi T)``.

    Args:
        time: Where to evaluate, in samples from the centre.
        half_length: Half the filter's length in samples; it is 0 beyond.
        stop: Frequency in cycles a sample from which on :data:`STOP_BAND_DB` hold.
    """
    beta = 0.1102 * (STOP_BAND_DB - 8.7)
    transition = (STOP_BAND_DB - 7.95) / (2.285 * 2 * math.pi * 2 * half_length)
    cutoff = stop - transition / 2
    inside = 1 - (time / half_length) ** 2
    window = np.where(inside >= 0, np.i0(beta * np.sqrt(np.maximum(inside, 0))), 0) / np.i0(beta)
    return 2 * cutoff * np.sinc(2 * cutoff * time) * window


def _check_rate(which: str, rate_hz: int) -> None:
    """Raise ``InvalidAudio`` for a rate that cannot be resampled."""
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ or rate_hz != int(rate_hz):
        raise InvalidAudio(
            f"{which} sample rate must be a whole number from {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz, "
            f"got {rate_hz}"
        )
