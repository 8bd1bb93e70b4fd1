"""How loud a step of audio is in each band of hearing, twenty milliseconds at a time."""

from collections.abc import Mapping

import numpy as np

from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES

FRAMES = 4
"""Frames in a step: 20 ms each."""

RANGE_HZ = (60.0, 7600.0)
"""What a wide-band telephone carries."""

BANDS = 40
"""Mel bands in it."""

FAINTEST = 1e-5
"""Added to a band's magnitude: below it is silence."""

_HOP = STEP_SAMPLES // FRAMES
_WINDOW = 2 * _HOP
_SIZE = 1024


def _mel_filters() -> np.ndarray:
    """Triangles on the mel scale of O'Shaughnessy, float32 ``(_SIZE // 2 + 1, BANDS)``."""
    lowest, highest = 2595 * np.log10(1 + np.array(RANGE_HZ) / 700)
    mels = np.linspace(lowest, highest, BANDS + 2)
    edges_hz = 700 * (10 ** (mels / 2595) - 1)
    bins_hz = np.fft.rfftfreq(_SIZE, 1 / SAMPLE_RATE_HZ)[:, None]
    rising = (bins_hz - edges_hz[:-2]) / (edges_hz[1:-1] - edges_hz[:-2])
    falling = (edges_hz[2:] - bins_hz) / (edges_hz[2:] - edges_hz[1:-1])
    return np.maximum(np.minimum(rising, falling), 0).astype(np.float32)


_FILTERS = _mel_filters()
_HANN = np.hanning(_WINDOW).astype(np.float32) / _WINDOW


SILENT_STEP = np.full((FRAMES, BANDS), np.log(FAINTEST), np.float32)
"""The log mel spectrum of a step of silence."""


class Spectra:
    """The log mel spectra of conversations, each in a slot, step by step."""

    def __init__(self, slots: int):
        """Initialize with every slot at its start.

        Args:
            slots: Conversations at a time.
        """
        self._before = np.zeros((slots, STEP_SAMPLES), np.float32)

    def join(self, slot: int) -> None:
        """Begin a conversation in a slot."""
        self._before[slot] = 0.0

    def of(self, frames: Mapping[int, np.ndarray]) -> dict[int, np.ndarray]:
        """Hear a step.

        Args:
            frames: Audio by slot, float32, shape ``(STEP_SAMPLES,)``, 24 kHz.

        Returns:
            By slot, the step's log mel spectrum, float32, shape ``(FRAMES, BANDS)``.
        """
        slots = list(frames)
        now = np.stack([frames[slot] for slot in slots])
        mels = log_mel(self._before[slots], now)
        self._before[slots] = now
        return dict(zip(slots, mels, strict=True))


def log_mel(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """Return the log mel spectrum of steps.

    Args:
        before: The step before each, float32, shape ``(steps, STEP_SAMPLES)``, 24 kHz.
        now: The steps, of the same shape.

    Returns:
        Float32, shape ``(steps, FRAMES, BANDS)``.
    """
    joined = np.concatenate([before[:, -_HOP:], now], axis=1)
    windows = np.lib.stride_tricks.sliding_window_view(joined, _WINDOW, axis=1)[:, ::_HOP]
    magnitude = np.abs(np.fft.rfft(windows * _HANN, _SIZE)).astype(np.float32)
    return np.log(magnitude @ _FILTERS + FAINTEST)
