"""When phones are heard in recordings of people."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from training.alignment import Aligner, aligned
from training.people import Recording
from training.sizes import SAMPLE_RATE
from training.speech import flite_phones

PEOPLE = Path(__file__).parent / "people"
TEXT = "it makes more sense than going to war"

pytestmark = pytest.mark.needs("pocketsphinx", "flite")


def samples(name: str) -> np.ndarray:
    pcm, rate_hz = soundfile.read(PEOPLE / f"{name}.opus", dtype="float32")
    return soxr.resample(pcm, rate_hz, SAMPLE_RATE).astype(np.float32)


def recording(name: str, said: str) -> Recording:
    return Recording(PEOPLE / f"{name}.opus", "tests", name, (), None, said)


def test_phones_follow_one_another_in_the_words():
    found = aligned(recording("sentence", TEXT), Aligner())
    assert found is not None and found.text == TEXT
    speech = found.speech
    assert [word.label for word in speech.words] == TEXT.split()
    phones = [span for span in speech.phones if span.label != "pau"]
    assert [span.label for span in phones[:5]] == ["ih", "t", "m", "ey", "k"]
    assert all(one.end <= two.start for one, two in pairwise(speech.phones))
    seconds = len(speech.samples) / SAMPLE_RATE
    assert 0 <= phones[0].start < phones[-1].end <= seconds
    # They lie where the sound is.
    level = np.abs(speech.samples)
    inside = level[round(phones[0].start * SAMPLE_RATE) : round(phones[-1].end * SAMPLE_RATE)]
    assert (inside**2).sum() > 0.95 * (level**2).sum()


def test_a_word_that_is_in_no_dictionary_is_said_as_flite_says_it():
    assert flite_phones("blorbish") == ["b", "l", "ao", "r", "b", "ih", "sh"]
    found = Aligner().align(samples("right"), "blorbish")
    assert found is None or [span.label for span in found.words] == ["blorbish"]


@pytest.mark.parametrize("text", ["", "-", "é"])
def test_what_cannot_be_said_is_not_found(text):
    assert Aligner().align(samples("right"), text) is None


def test_words_that_are_not_there_are_not_found():
    assert Aligner().align(np.zeros(SAMPLE_RATE, np.float32)[: SAMPLE_RATE // 10], TEXT) is None
