"""The user's audio, from chunks of any rate and length to steps of the model."""

import numpy as np

from pipecat_duplex.conversation.cutter import StepCutter
from pipecat_duplex.conversation.resampler import Resampler
from pipecat_duplex.session import SAMPLE_RATE_HZ


class Intake:
    """Resamples and cuts the user's audio. The rate may change at any chunk."""

    def __init__(self) -> None:
        """Initialize an empty intake."""
        self._cutter = StepCutter()
        self._resampler: Resampler | None = None
        # What the last rate's filter still held, to be added to the first output of this one's.
        self._tail = np.zeros(0, np.float32)

    def push(self, pcm: np.ndarray, rate_hz: int) -> list[np.ndarray]:
        """Take a chunk.

        Args:
            pcm: Float32 mono, any length.
            rate_hz: Its sample rate.

        Returns:
            The steps that are now whole, float32, shape ``(STEP_SAMPLES,)``, 24 kHz.

        Raises:
            InvalidAudio: The rate is not supported; nothing is lost.
        """
        if self._resampler is None or rate_hz != self._resampler.in_rate_hz:
            resampler = Resampler(rate_hz, SAMPLE_RATE_HZ)
            self._tail = self._drain()
            self._resampler = resampler
        return self._cutter.push(self._add_tail(self._resampler.push(pcm)))

    def flush(self) -> np.ndarray | None:
        """Return the incomplete step, filled up with silence, or ``None`` if there is none."""
        return self._cutter.flush()

    def _drain(self) -> np.ndarray:
        if self._resampler is None:
            return self._tail
        # A linear-phase filter rings for twice its delay.
        secs = 2 * self._resampler.delay_secs
        silence = np.zeros(round(secs * self._resampler.in_rate_hz), np.float32)
        return self._add_tail(self._resampler.push(silence))

    def _add_tail(self, pcm: np.ndarray) -> np.ndarray:
        count = min(len(self._tail), len(pcm))
        if not count:
            return pcm
        pcm = pcm.copy()
        pcm[:count] += self._tail[:count]
        self._tail = self._tail[count:]
        return pcm
