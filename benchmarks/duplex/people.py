"""Recordings of people as users.

They say what they said in the recording, which is nothing that the embedded model knows: it owes
them "sorry i do not know that", once they have finished. What in a recording is something of its
world, such as "thank you", is cut out and said too. The long answers that they talk over are asked
for by a synthetic voice at the same microphone, since nobody recorded asks for one.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.duplex.speech import Line, Speaker, exchanges
from benchmarks.duplex.users import PAUSE_SECS, Plan, Turn
from training import acoustics, people, world
from training.corpus import with_pauses
from training.people import Recording
from training.sizes import SAMPLE_RATE, STEP_SAMPLES
from training.speech import Speech

PEOPLE = "people"
TURNS = ("ask",) * 4 + ("pause",) * 2 + ("barge_in",) * 3 + ("backchannel", "inside")
HELPER = "flite:rms"
"""Who asks for the long answers: a voice of the training, so that they come."""

_LEVEL_DB, _NOISE_DB = (-32.0, -16.0), (-55.0, -35.0)
_BACKGROUND_SECS = 20.0
_MIDDLE = (0.25, 0.85)
"""A pause is put between two words in this part of a sentence."""

_LEAST_WORDS = 4


class NoPeople(ValueError):
    """A folder has no recordings that can be used."""


def people_plans(
    folder: Path, dialogues: int, seed: int, *, everybody: bool = False, cache: Path | None = None
) -> Iterator[Plan]:
    """Draw dialogues of people.

    Args:
        folder: Recordings with a ``manifest.jsonl``, see ``training.people``.
        dialogues: How many; each is of one speaker.
        seed: The same again gives the same.
        everybody: Whether speakers of the training are among them.
        cache: Folder that keeps what was synthesised.
    """
    if not (folder / people.MANIFEST).is_file():
        raise NoPeople(f"{folder} has no {people.MANIFEST}")
    recordings = [r for r in people.read_manifest(folder) if everybody or r.held_out]
    by_speaker = _by_speaker(recordings)
    if not by_speaker:
        raise NoPeople(f"{folder} has no recordings of speakers that were kept out of the training")
    cuts = _Cuts(recordings)
    rng = np.random.default_rng([seed, 11])
    names = [sorted(by_speaker)[i] for i in rng.permutation(len(by_speaker))]
    for index in range(dialogues):
        name = names[index % len(names)]
        own = np.random.default_rng([seed, 12, index])
        yield _Person(name, by_speaker[name], cuts, own, cache).plan(name)


def _by_speaker(recordings: list[Recording]) -> dict[str, list[Recording]]:
    """Recordings by who speaks; those of unknown speakers by their collection."""
    found = defaultdict(list)
    for recording in recordings:
        known = recording.speaker != str(recording.path) and "/" not in recording.speaker
        name = recording.speaker if known else "several"
        found[f"{recording.source}/{name}"].append(recording)
    return dict(found)


class _Cuts:
    """What people say that is something of the world, by its kind."""

    def __init__(self, recordings: list[Recording]):
        self.hums: list[tuple[str, str, Speech]] = []
        self.inside: list[tuple[str, str, Speech]] = []
        for recording in recordings:
            for item in people.inside_world(recording):
                (self.hums if item[1] == "backchannel" else self.inside).append(item)
        items = [item for own in exchanges().values() for item in own]
        self.answers = {item.question: item.answer for item in items}
        self._texts = people.world_texts()

    def of_whole(self, recording: Recording) -> tuple[str, str, str]:
        """Return text, kind and the answer owed to a whole recording."""
        words = tuple(word.label for word in recording.words)
        text, kind = self._texts.get(words, (recording.text, "outside"))
        return text, kind, self.answers.get(text, world.UNKNOWN)


class _Person:
    """One speaker in one dialogue."""

    def __init__(
        self,
        name: str,
        recordings: list[Recording],
        cuts: _Cuts,
        rng: np.random.Generator,
        cache: Path | None,
    ):
        self._name, self._recordings, self._cuts, self._rng = name, recordings, cuts, rng
        self._helper = Speaker(HELPER, rng, cache)
        # The recording has its room and its microphone already.
        self._microphone = acoustics.Microphone(
            reverberation=0.0,
            band=(20.0, 12_000.0),
            tilt=0.0,
            level=rng.uniform(*_LEVEL_DB),
            noise=rng.uniform(*_NOISE_DB),
            colour=rng.uniform(0, 2),
            seed=int(rng.integers(2**31)),
        )
        self._helper.microphone = self._microphone

    def plan(self, name: str) -> Plan:
        kinds = [str(kind) for kind in self._rng.permutation(TURNS)]
        turns = tuple(turn for kind in kinds if (turn := self._turn(kind)))
        length = round(_BACKGROUND_SECS * SAMPLE_RATE)
        background = acoustics.background(length, self._microphone).astype(np.float32)
        return Plan(name, PEOPLE, background, True, turns)

    def _turn(self, kind: str) -> Turn | None:
        rng = self._rng
        wait_secs, into_secs = rng.uniform(0.6, 1.5), rng.uniform(0.6, 1.6)
        if kind == "ask":
            return Turn("ask", self._sentence(), None, wait_secs, into_secs)
        if kind == "pause":
            line = self._sentence(pause_secs=rng.uniform(*PAUSE_SECS))
            return Turn("pause" if line.pause_secs else "ask", line, None, wait_secs, into_secs)
        if kind == "inside":
            line = self._cut(self._cuts.inside)
            return line and Turn("ask", line, None, wait_secs, into_secs)
        over = self._sentence() if kind == "barge_in" else self._cut(self._cuts.hums)
        return over and Turn(kind, self._story(), over, wait_secs, into_secs)

    def _story(self) -> Line:
        (story, *_) = exchanges()["story"]
        return self._helper.say(story)

    def _sentence(self, pause_secs: float | None = None) -> Line:
        """A recording; with a pause of the given length if its words are known."""
        while True:
            recording = self._recordings[self._rng.integers(len(self._recordings))]
            speech = people.speech_of(recording)
            if speech is None:
                continue
            places = [i for i in range(len(speech.words)) if self._is_middle(speech, i)]
            what = self._cuts.of_whole(recording)
            if pause_secs is None or not places:
                return self._line(speech, *what)
            place = int(self._rng.choice(places))
            at_secs = speech.words[place].start
            paused = with_pauses(speech, {place: pause_secs})
            line = self._line(paused, *what)
            begin_secs = line.start_secs - paused.words[0].start + at_secs
            return replace(line, pause_secs=(begin_secs, begin_secs + pause_secs))

    @staticmethod
    def _is_middle(speech: Speech, place: int) -> bool:
        low, high = (share * len(speech.words) for share in _MIDDLE)
        return len(speech.words) >= _LEAST_WORDS and low <= place <= high

    def _cut(self, cuts: list[tuple[str, str, Speech]]) -> Line | None:
        if not cuts:
            return None
        text, kind, speech = cuts[self._rng.integers(len(cuts))]
        return self._line(speech, text, kind, self._cuts.answers.get(text, ""))

    def _line(self, speech: Speech, text: str, kind: str, answer: str) -> Line:
        lead = int(self._rng.integers(STEP_SAMPLES))
        pcm = np.pad(speech.samples, (lead, 0))
        level = acoustics.speech_level(speech.samples)
        return Line(
            text.replace("| ", ""),
            kind,
            answer,
            acoustics.through_room(pcm, self._microphone, level).astype(np.float32),
            lead / SAMPLE_RATE + speech.words[0].start,
            lead / SAMPLE_RATE + speech.words[-1].end,
        )
