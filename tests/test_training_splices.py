"""Questions of the world, put together from words of recordings."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from training.people import Recording
from training.sizes import SAMPLE_RATE
from training.speech import Span, Speech, played_faster
from training.splices import Splicer, join, pitch_hz


def tone(hz: float, secs: float) -> np.ndarray:
    """A buzz with overtones, as a voice has."""
    at = np.arange(round(secs * SAMPLE_RATE)) / SAMPLE_RATE
    return sum(np.sin(2 * np.pi * n * hz * at) / n for n in range(1, 6)).astype(np.float32) / 10


def recording(folder: Path, speaker: str, hz: float, text: str) -> Recording:
    words = text.split()
    spans = tuple(Span(word, 0.2 + 0.4 * i, 0.6 + 0.4 * i) for i, word in enumerate(words))
    path = folder / f"{speaker}-{'-'.join(words)}.wav"
    soundfile.write(path, tone(hz, 0.4 + 0.4 * len(words)), SAMPLE_RATE)
    return Recording(path, "test", speaker, spans, None)


@pytest.fixture
def splicer(tmp_path: Path) -> Splicer:
    said = [
        ("low", 100, "what is it"),
        ("low", 100, "is two enough"),
        ("high", 200, "two plus some"),
        ("higher", 230, "three of us"),
        ("lower", 125, "three of them"),
    ]
    recordings = [recording(tmp_path, *each) for each in said]
    return Splicer(recordings, set("what is two plus three".split()))


def test_a_sentence_is_made_of_runs_of_words(splicer: Splicer):
    words = "what is two plus three".split()
    for seed in range(4):
        _, speech = splicer.say(words, np.random.default_rng(seed))
        assert [span.label for span in speech.words] == words
        starts = [span.start for span in speech.words]
        assert (
            starts == sorted(starts) and speech.words[-1].end <= len(speech.samples) / SAMPLE_RATE
        )
        assert 1.6 < len(speech.samples) / SAMPLE_RATE < 2.6


def test_words_that_nobody_says_are_told(splicer: Splicer):
    assert splicer.can_say(["what", "is", "three"])
    assert not splicer.can_say(["what", "is", "four"])
    assert not splicer.can_say(["it"])  # Said, but no word of the world.


def test_other_voices_help_at_the_pitch_of_the_first(splicer: Splicer):
    for seed in range(6):
        voice, speech = splicer.say(["what", "is", "three"], np.random.default_rng(seed))
        if voice != "test/low":
            continue
        last = speech.words[-1]
        sound = speech.samples[round(last.start * SAMPLE_RATE) :]
        assert pitch_hz(sound) == pytest.approx(100, rel=0.05)


def test_the_pitch_of_a_voice():
    assert pitch_hz(tone(120, 0.5)) == pytest.approx(120, rel=0.02)
    assert pitch_hz(tone(240, 0.05)) == pytest.approx(240, rel=0.05)
    faster = played_faster(Speech(tone(120, 0.5), (), (Span("a", 0.0, 0.5),)), 1.25)
    assert pitch_hz(faster.samples) == pytest.approx(150, rel=0.03)
    assert faster.words[0].end == pytest.approx(0.4)


def test_pieces_are_joined_at_one_level():
    pieces = [
        Speech(gain * tone(120, 0.4), (), (Span(word, 0.015, 0.385),))
        for gain, word in ((0.2, "one"), (1.0, "two"), (0.5, "three"))
    ]
    joined = join(pieces)
    levels = [
        np.sqrt((joined.samples[round(w.start * SAMPLE_RATE) :][:4_800] ** 2).mean())
        for w in joined.words
    ]
    assert max(levels) < 1.2 * min(levels)
