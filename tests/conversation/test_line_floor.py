"""Which steps are quiet on lines of any level."""

import numpy as np
import pytest

from pipecat_duplex.conversation.line_floor import FLOOR_STEPS, LineFloor


@pytest.mark.parametrize("line_db", [-90, -55, -45, -38])
def test_between_words_a_line_is_quiet_and_speech_is_not(line_db):
    floor, rng = LineFloor(), np.random.default_rng(0)
    quiet = [floor.is_quiet(line_db + rng.uniform(-1, 1)) for _ in range(FLOOR_STEPS)]
    speech = [floor.is_quiet(-30 + rng.uniform(-6, 6)) for _ in range(FLOOR_STEPS // 2)]
    assert np.mean(quiet) > 0.9 and not any(speech)


def test_one_who_speaks_without_a_pause_is_not_quiet():
    floor, rng = LineFloor(), np.random.default_rng(0)
    assert not any(floor.is_quiet(-25 + rng.uniform(-8, 8)) for _ in range(3 * FLOOR_STEPS))
