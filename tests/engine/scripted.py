"""Scripted audio for the engine's tests."""

import numpy as np

from pipecat_duplex.session import STEP_SAMPLES


def noise(steps: int, seed: int) -> np.ndarray:
    """Audio of changing level, float32, shape ``(steps, STEP_SAMPLES)``."""
    rng = np.random.default_rng(seed)
    levels = 10 ** rng.uniform(-3, 0, size=(steps, 1))
    audio = rng.uniform(-1, 1, size=(steps, STEP_SAMPLES)) * levels
    return audio.astype(np.float32)
