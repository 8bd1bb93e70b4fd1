"""What the user says while a conversation moves, and no model listens."""

from collections import deque
from collections.abc import Iterable

import numpy as np

from pipecat_duplex.session.history import AUDIO_STEPS

LEAD_STEPS = 2
"""Steps before the first sound of a voice, which may hold its soft beginning."""

ABOVE_NOISE_DB = 12.0
"""A voice is so much louder than what is always there."""

LOWEST_VOICE_DB = -45.0
HIGHEST_VOICE_DB = -35.0


class UnheardAudio:
    """The last four seconds that nobody heard, and what of them is worth hearing afterwards.

    The next model takes the user's voice first, faster than real time, and is where the user is.
    Silence is left out: while the model hears it, the agent may go on speaking, and its words
    of that time would be lost.

    Parameters:
        left_out: Steps before the speech that was taken last.
    """

    def __init__(self):
        """Initialize without audio."""
        self._steps: deque[np.ndarray] = deque(maxlen=AUDIO_STEPS)
        self.left_out = 0

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self._steps)

    def add(self, *steps: np.ndarray) -> None:
        """Take steps that nobody heard; float32, shape ``(STEP_SAMPLES,)``."""
        self._steps.extend(steps)

    def take_speech(self, before: Iterable[np.ndarray] = ()) -> list[np.ndarray]:
        """Return the steps from the user's first word to the last, and forget all of them.

        Args:
            before: Audio that was heard before, which tells how loud it is when nobody speaks.
        """
        steps = list(self._steps)
        self._steps.clear()
        levels_db = [_level_db(step) for step in steps]
        threshold_db = _threshold_db([*map(_level_db, before), *levels_db])
        voiced = [index for index, level_db in enumerate(levels_db) if level_db > threshold_db]
        self.left_out = max(0, voiced[0] - LEAD_STEPS) if voiced else len(steps)
        return steps[self.left_out : voiced[-1] + 1] if voiced else []


def _threshold_db(levels_db: list[float]) -> float:
    if not levels_db:
        return HIGHEST_VOICE_DB
    noise_db = float(np.percentile(levels_db, 20))
    return min(HIGHEST_VOICE_DB, max(LOWEST_VOICE_DB, noise_db + ABOVE_NOISE_DB))


def _level_db(step: np.ndarray) -> float:
    return 10 * float(np.log10(np.mean(np.square(step)) + 1e-12))
