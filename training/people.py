"""Recordings of people, as utterances of the corpus.

A folder of recordings has a ``manifest.jsonl``: one JSON object a line with ``path`` and
``source``, and where known ``speaker``, ``text``, ``words`` (each with its start and end in
seconds) and ``sound_secs`` (where the sound begins and ends). Recordings never go into the
repository.

People outside the training are kept for measuring: a fifth of the speakers, and where nobody knows
who speaks, of the recordings.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from training import world
from training.sizes import SAMPLE_RATE
from training.speech import Span, Speech

MANIFEST = "manifest.jsonl"
UNKNOWN_WORD = "something"  # of recordings without a text: one word that lasts as they do
_WORDS = re.compile(r"[a-z' ]+")
_HELD_OUT_SHARE = 5  # one of so many
_LEAD_SECS, _TAIL_SECS, _FADE_SECS = 0.06, 0.35, 0.03
_LATEST_END_SECS = 0.25  # a recording's sound may outlast the aligner's last word this much
_LONGEST_SECS = 14.0
_FAINTEST = 0.08  # of the level of loud frames


@dataclass(frozen=True)
class Recording:
    """One line of a manifest.

    Attributes:
        path: the sound file.
        source: the collection it is from.
        speaker: who speaks, or a number of the recording where nobody knows.
        words: what is said and when; one word where that is not known.
        sound: start and end of the sound in seconds, where the manifest tells them.
        said: the manifest's text, where there is one.
    """

    path: Path
    source: str
    speaker: str
    words: tuple[Span, ...]
    sound: tuple[float, float] | None
    said: str = ""

    @property
    def held_out(self) -> bool:
        """Whether the speaker is kept out of the training."""
        digest = hashlib.sha1(f"{self.source}/{self.speaker}".encode()).digest()
        return digest[0] % _HELD_OUT_SHARE == 0

    @property
    def text(self) -> str:
        """Its words."""
        return " ".join(word.label for word in self.words)

    def samples(self) -> np.ndarray:
        """Its sound, float32 mono at 24 kHz."""
        samples, rate = soundfile.read(self.path, dtype="float32", always_2d=True)
        return soxr.resample(samples.mean(1), rate, SAMPLE_RATE).astype(np.float32)


def read_manifest(folder: Path) -> Iterator[Recording]:
    """All recordings of a folder."""
    for line in (folder / MANIFEST).read_text().splitlines():
        item = json.loads(line)
        speaker = str(item.get("speaker") or "?")
        text = (item.get("text") or "").lower()
        unknown = speaker == "?" or item["source"].startswith("mycroft")
        yield Recording(
            path=folder / item["path"],
            source=item["source"],
            speaker=item["path"] if unknown else speaker,
            words=tuple(Span(*word) for word in item.get("words") or ()),
            sound=tuple(item["sound_secs"]) if item.get("sound_secs") else None,
            said=text if _WORDS.fullmatch(text) else "",
        )


def speech_of(recording: Recording) -> Speech | None:
    """The recording from its first word to its last, with a little of what is around them."""
    samples = recording.samples()
    start, end = recording.sound or heard(samples)
    words = recording.words
    if words:
        start, last = words[0].start, words[-1].end
        end = last + min(max(end - last, 0.0), _LATEST_END_SECS)
        words = (*words[:-1], Span(words[-1].label, words[-1].start, end))
    else:
        words = (Span(UNKNOWN_WORD, start, end),)
    if not 0.1 < end - start < _LONGEST_SECS:
        return None
    return cut(samples, words, _LEAD_SECS, _TAIL_SECS)


def inside_world(recording: Recording) -> Iterator[tuple[str, str, Speech]]:
    """Text, kind and sound of each stretch of a recording that is something of the world."""
    samples = None
    for words, (text, kind) in world_texts().items():
        for spans in find_words(recording.words, words):
            samples = recording.samples() if samples is None else samples
            yield text, kind, cut(samples, spans, 0.02, 0.04)


def find_words(spans: tuple[Span, ...], words: tuple[str, ...]) -> Iterator[tuple[Span, ...]]:
    """Each place in what is said where these words stand one after another."""
    for first in range(len(spans) - len(words) + 1):
        found = spans[first : first + len(words)]
        if tuple(span.label for span in found) == words:
            yield found


def world_texts() -> dict[tuple[str, ...], tuple[str, str]]:
    """What users say in the world, by its words: its text with the pause mark, and its kind."""
    texts = {tuple(text.split()): (text, "backchannel") for text in world.BACKCHANNELS}
    for exchange in world.exchanges():
        if exchange.kind != "outside":
            texts[tuple(exchange.words.split())] = (exchange.question, exchange.kind)
    return texts


def cut(samples: np.ndarray, words: tuple[Span, ...], lead: float, tail: float) -> Speech:
    """A stretch of a recording, faded at both ends."""
    start = max(words[0].start - lead, 0.0)
    end = min(words[-1].end + tail, len(samples) / SAMPLE_RATE)
    own = samples[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)].copy()
    edge = min(round(_FADE_SECS * SAMPLE_RATE), len(own) // 2)
    own[:edge] *= np.linspace(0, 1, edge, dtype=np.float32)
    own[len(own) - edge :] *= np.linspace(1, 0, edge, dtype=np.float32)
    spans = (Span(w.label, w.start - start, min(w.end, end) - start) for w in words)
    return Speech(own, (), tuple(spans))


def heard(samples: np.ndarray) -> tuple[float, float]:
    """When the sound begins and ends in a recording that has some noise."""
    hop = SAMPLE_RATE // 50
    frames = samples[: len(samples) // hop * hop].reshape(-1, hop)
    levels = np.sqrt((frames**2).mean(1))
    floor, loud = np.quantile(levels, 0.1), np.quantile(levels, 0.95)
    above = np.flatnonzero(levels > max(_FAINTEST * loud, min(3 * floor, 0.3 * loud)))
    return above[0] * hop / SAMPLE_RATE, (above[-1] + 1) * hop / SAMPLE_RATE
