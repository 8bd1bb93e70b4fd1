"""Voice detectors share Silero's weights, and nothing else."""

import functools

import numpy as np
import pytest
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADState

from pipecat_duplex.conversation.pcm import float_to_pcm16
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


async def states(detector: VoiceDetector, pcm: np.ndarray) -> list[VADState]:
    """What a detector says after each 80 ms."""
    step = 1280
    pcm16 = float_to_pcm16(pcm)
    chunks = [pcm16[i : i + 2 * step] for i in range(0, len(pcm16), 2 * step)]
    heard = [await detector.analyze_audio(chunk) for chunk in chunks]
    await detector.cleanup()
    return heard


@pytest.mark.parametrize("noise", [0.0, 0.003])
async def test_it_says_what_it_would_say_without_a_rest_in_silence(noise, monkeypatch):
    """With and without noise in the pauses; a voice after a pause is noticed no later."""
    pcm = np.concatenate([part for _ in range(2) for part in (silence(2.5), speech("question"))])
    pcm = np.concatenate([pcm, silence(1.0)])
    pcm = pcm + noise * np.random.default_rng(0).standard_normal(len(pcm)).astype(np.float32)
    rated = []
    rate = VoiceDetector.voice_confidence
    monkeypatch.setattr(
        VoiceDetector, "voice_confidence", lambda self, w: rated.append(w) or rate(self, w)
    )
    diligent = detector()
    monkeypatch.setattr(diligent, "_is_more_silence", lambda buffer: False)
    monkeypatch.setattr(
        diligent,
        "_get_smoothed_volume",
        functools.partial(SileroVADAnalyzer._get_smoothed_volume, diligent),
    )
    expected = await states(diligent, pcm)
    assert len(rated) == len(pcm) // WINDOW
    rated.clear()
    said = await states(detector(), pcm)
    assert VADState.SPEAKING in expected
    assert said == expected
    assert (len(rated) < 0.8 * len(pcm) // WINDOW) == (noise == 0)
