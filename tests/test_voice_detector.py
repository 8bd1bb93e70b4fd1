"""Voice detectors share Silero's weights, and nothing else."""

import numpy as np
import pytest

from pipecat_duplex.service.voice_detector import VoiceDetector
from tests.pipeline import silence, speech

WINDOW = 512


def detector() -> VoiceDetector:
    made = VoiceDetector()
    made.set_sample_rate(16_000)
    return made


def windows(pcm: np.ndarray) -> list[bytes]:
    pcm16 = (pcm * 32767).astype("<i2")
    return [pcm16[i : i + WINDOW].tobytes() for i in range(0, len(pcm16) - WINDOW + 1, WINDOW)]


def test_the_model_is_loaded_once():
    first, second = detector(), detector()
    assert first._model.session is second._model.session
    assert first._model is not second._model


def test_detectors_do_not_hear_each_other():
    """In turns with another one, each window is rated as it is alone."""
    voices = windows(speech("question")), windows(speech("barge_in"))
    alone = [
        [float(np.ravel(d.voice_confidence(w))[0]) for w in v] for v in voices for d in [detector()]
    ]
    pair = detector(), detector()
    together: list[list[float]] = [[], []]
    for both in zip(*voices, strict=False):
        for each, heard, window in zip(together, pair, both, strict=True):
            each.append(float(np.ravel(heard.voice_confidence(window))[0]))
    for each, expected in zip(together, alone, strict=True):
        assert each == pytest.approx(expected[: len(each)], abs=1e-6)
    assert max(alone[0]) > 0.5


def test_a_new_detector_has_heard_nothing():
    used = detector()
    for window in windows(speech("question")):
        used.voice_confidence(window)
    quiet = windows(silence(0.2))[0]
    assert float(np.ravel(detector().voice_confidence(quiet))[0]) < 0.1
    assert not detector()._model._state.any()
