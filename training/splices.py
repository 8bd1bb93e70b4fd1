"""Questions of the world in people's words, put together from recordings.

Nobody recorded asks "what is two plus three", but people say "what is", "two" and "three" in other
sentences. Without them a model learns that what sounds like a recording of a person is never a
question of its world. Runs of words are taken as long as anybody says them, from one voice where
it has them; other voices give the rest, those of nearly the same pitch, played faster or slower
until they have it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from training import acoustics
from training.people import Recording, cut
from training.sizes import SAMPLE_RATE
from training.speech import Span, Speech, played_faster

LONGEST_RUN = 4  # words
_SHORTEST_SECS = 0.06  # of a word: the aligner's doubts are shorter
_EDGE_SECS = 0.015  # beside each run, faded into the next
_PITCHES_HZ = (70.0, 400.0)
_FACTORS = (0.8, 1.25)
_VOICES = 12  # of those with the most words, one speaks
_CANDIDATES = 16


@dataclass(frozen=True)
class _Place:
    """Where a run of words stands."""

    recording: int
    first: int
    count: int


class Splicer:
    """Puts sentences together from words of recordings."""

    def __init__(self, recordings: Sequence[Recording], vocabulary: set[str]) -> None:
        """Note where each run of words of the vocabulary stands."""
        self._recordings = [item for item in recordings if len(item.words) > 1]
        self._samples: dict[int, np.ndarray] = {}
        self._places: dict[tuple[str, ...], list[_Place]] = {}
        self._own: dict[str, dict[tuple[str, ...], list[_Place]]] = {}
        for number, recording in enumerate(self._recordings):
            voice = f"{recording.source}/{recording.speaker}"
            for run, place in _runs(number, recording.words, vocabulary):
                self._places.setdefault(run, []).append(place)
                self._own.setdefault(voice, {}).setdefault(run, []).append(place)

    def can_say(self, words: Sequence[str]) -> bool:
        """Whether somebody says each of the words."""
        return all((word,) in self._places for word in words)

    def say(self, words: Sequence[str], rng: np.random.Generator) -> tuple[str, Speech]:
        """A voice, and how it says these words with other voices' help."""
        counts = {v: sum((w,) in own for w in words) for v, own in self._own.items()}
        voices = sorted(counts, key=lambda voice: (-counts[voice], rng.random()))
        voice = voices[int(rng.integers(min(_VOICES, len(voices))))]
        own = [self._cut(places[0]) for places in islice(self._own[voice].values(), 20)]
        pitch = float(np.median([pitch_hz(speech.samples) for speech in own]))
        pieces, at = [], 0
        while at < len(words):
            places = self._find(words[at:], self._own[voice])
            longest = self._find(words[at:], self._places)
            helps = not places or places[0].count < longest[0].count
            places = longest if helps else places
            chosen = [places[i] for i in rng.permutation(len(places))[:_CANDIDATES]]
            pieces.append(self._nearest(chosen, pitch) if helps else self._cut(chosen[0]))
            at += chosen[0].count
        return voice, join(pieces)

    @staticmethod
    def _find(words: Sequence[str], places: dict[tuple[str, ...], list[_Place]]) -> list[_Place]:
        """The places of the longest run that the words begin with."""
        for count in range(min(LONGEST_RUN, len(words)), 0, -1):
            if tuple(words[:count]) in places:
                return places[tuple(words[:count])]
        return []

    def _nearest(self, places: list[_Place], pitch: float) -> Speech:
        """The one of the nearest pitch, moved to it."""
        cuts = [self._cut(place) for place in places]
        factors = [pitch / pitch_hz(speech.samples) for speech in cuts]
        best = int(np.argmin(np.abs(np.log(factors))))
        return played_faster(cuts[best], float(np.clip(factors[best], *_FACTORS)))

    def _cut(self, place: _Place) -> Speech:
        recording = self._recordings[place.recording]
        if place.recording not in self._samples:
            self._samples[place.recording] = recording.samples().astype(np.float16)
        samples = self._samples[place.recording].astype(np.float32)
        spans = recording.words[place.first : place.first + place.count]
        return cut(samples, spans, _EDGE_SECS, _EDGE_SECS)


def _runs(
    number: int, words: Sequence[Span], vocabulary: set[str]
) -> Iterator[tuple[tuple[str, ...], _Place]]:
    for first in range(len(words)):
        for count in range(1, min(LONGEST_RUN, len(words) - first) + 1):
            run = tuple(word.label for word in words[first : first + count])
            if run[-1] not in vocabulary or _secs(words[first + count - 1]) < _SHORTEST_SECS:
                break
            yield run, _Place(number, first, count)


def _secs(word: Span) -> float:
    return word.end - word.start


def join(pieces: Sequence[Speech]) -> Speech:
    """Pieces one after another at one level, each faded into the next."""
    overlap = round(2 * _EDGE_SECS * SAMPLE_RATE)
    levels = [max(acoustics.speech_level(piece.samples), 1e-4) for piece in pieces]
    level = float(np.median(levels))
    length = sum(len(piece.samples) for piece in pieces)
    sound, words, at = np.zeros(length, np.float32), [], 0
    for piece, own in zip(pieces, levels, strict=True):
        sound[at : at + len(piece.samples)] += piece.samples * (level / own)
        secs = at / SAMPLE_RATE
        words += [Span(word.label, word.start + secs, word.end + secs) for word in piece.words]
        at += max(len(piece.samples) - overlap, 1)
    return Speech(sound[: at + overlap], (), tuple(words))


def pitch_hz(samples: np.ndarray) -> float:
    """The fundamental of the loudest 60 ms, by their autocorrelation."""
    length = round(0.06 * SAMPLE_RATE)
    if len(samples) < 2 * length:
        samples = np.pad(samples, (0, 2 * length - len(samples)))
    energy = np.convolve(samples**2, np.ones(length), "valid")
    frame = samples[int(np.argmax(energy)) :][:length]
    spectrum = np.fft.rfft(frame - frame.mean(), 2 * length)
    correlation = np.fft.irfft(np.abs(spectrum) ** 2)[:length]
    first, last = (round(SAMPLE_RATE / hz) for hz in reversed(_PITCHES_HZ))
    return SAMPLE_RATE / (first + int(np.argmax(correlation[first:last])))
