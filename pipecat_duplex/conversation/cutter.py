"""Cuts a stream of audio into the steps that the model takes."""

import numpy as np

from pipecat_duplex.conversation.pcm import as_mono
from pipecat_duplex.session import STEP_SAMPLES


class StepCutter:
    """Gathers audio of any chunk length and gives it back in whole steps.

    Every sample comes out once and in order. The steps are the cutter's own memory: they share
    none with what was pushed.
    """

    def __init__(self, step_samples: int = STEP_SAMPLES):
        """Initialize an empty cutter.

        Args:
            step_samples: Length of a step in samples.

        Raises:
            ValueError: The length is below 1.
        """
        if step_samples < 1:
            raise ValueError(f"a step needs at least one sample, got {step_samples}")
        self._step_samples = step_samples
        self._pending = np.empty(0, np.float32)

    @property
    def pending_samples(self) -> int:
        """Samples that wait for their step to fill up; always less than a step."""
        return len(self._pending)

    def push(self, pcm: np.ndarray) -> list[np.ndarray]:
        """Take audio in and return the steps that it completes.

        Args:
            pcm: Floating point, shape ``(n,)``, any ``n``, also 0.

        Returns:
            As many float32 arrays of shape ``(step_samples,)`` as there are whole steps.

        Raises:
            InvalidAudio: Wrong shape or type; the cutter is not changed.
        """
        waiting = np.concatenate([self._pending, as_mono(pcm)])
        whole = len(waiting) - len(waiting) % self._step_samples
        # A copy: a view would keep the whole chunk alive for the sake of its end.
        self._pending = waiting[whole:].copy()
        return list(waiting[:whole].reshape(-1, self._step_samples))

    def flush(self) -> np.ndarray | None:
        """Fill the last step up with silence and return it.

        Returns:
            Float32, shape ``(step_samples,)``, or ``None`` when nothing is pending.
        """
        if not self._pending.size:
            return None
        step = np.zeros(self._step_samples, np.float32)
        step[: len(self._pending)] = self._pending
        self.reset()
        return step

    def reset(self) -> None:
        """Forget what is pending, as at the start of a new stream."""
        self._pending = np.empty(0, np.float32)
