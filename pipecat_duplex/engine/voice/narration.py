"""The sound of one utterance, made phrase by phrase while it is being heard."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from loguru import logger

from pipecat_duplex.engine.speech import FADE_SAMPLES, MAX_STALL_STEPS, Utterance
from pipecat_duplex.engine.voice.tts import Sound
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES, Said

AHEAD_STEPS = 25
"""How much sound is made ahead of what is heard (2 s)."""

RUNS_DRY_STEPS = 4
"""With less sound left, an unfinished sentence is spoken as far as it has come (0.32 s)."""

FIRST_WORDS = 4
"""Words with which an unfinished sentence begins."""

FIRST_WAIT_STEPS = 3
"""How long its first words wait for those (0.24 s)."""

MOST_WORDS = 30
"""Words of a phrase at most."""

PAUSE_SECS = {".": 0.3, "!": 0.3, "?": 0.3, "…": 0.3, ",": 0.08, ";": 0.15, ":": 0.15}
"""Silence after a phrase, by the sign that it ends with."""

_NO_ENDS = frozenset("mr mrs ms dr prof st mt no vs e.g i.e".split())
"""Words whose full stop ends no sentence, as that of a single letter does not."""

_CLOSING_SIGNS = "\"'”’)]"
_SENTENCE_ENDS = ".!?…"
_CLAUSE_ENDS = ",;:—"


class Speaks(Protocol):
    """Who speaks phrases in a thread."""

    def speak(self, words: tuple[str, ...]) -> "Future[Sound]":
        """Let a phrase be spoken."""
        ...


class NarratedStep(NamedTuple):
    """What is heard of an utterance in one step.

    Parameters:
        pcm: Float32, shape ``(STEP_SAMPLES,)``.
        word: The word that begins in it, or ``None``.
    """

    pcm: np.ndarray
    word: str | None


def phrase_length(words: list[str], *, is_whole: bool, hurries: bool) -> int:
    """Return how many of the words are spoken as the next phrase; 0 waits for more.

    Args:
        words: What is left to be spoken.
        is_whole: Whether nothing will follow.
        hurries: Whether an unfinished sentence should be spoken as far as it has come.
    """
    words = words[:MOST_WORDS]
    ends = [_last_sign(word) for word in words]
    for count, sign in enumerate(ends, start=1):
        if sign in _SENTENCE_ENDS:
            return count
    if is_whole and len(words) < MOST_WORDS:
        return len(words)
    if not hurries and len(words) < MOST_WORDS:
        return 0
    clauses = [count for count, sign in enumerate(ends, start=1) if sign in _CLAUSE_ENDS]
    return clauses[-1] if clauses else len(words)


def _last_sign(word: str) -> str:
    """Return the punctuation that a word ends with, or a space."""
    word = word.rstrip(_CLOSING_SIGNS)
    sign, before = word[-1:], word[:-1].lower()
    if sign == "." and (before in _NO_ENDS or len(before) == 1):
        return " "
    return sign if sign and sign in _SENTENCE_ENDS + _CLAUSE_ENDS else " "


@dataclass(slots=True)
class Narration:
    """An utterance as it sounds.

    Parameters:
        utterance: What to say; words may be added to it.
        speaks: Who speaks it.
        session_id: For the log.
        begun: Words that have begun to sound.
    """

    utterance: Utterance
    speaks: Speaks
    session_id: str
    begun: int = 0
    _given: int = 0
    _phrase: "Future[Sound] | None" = None
    _phrase_words: tuple[str, ...] = ()
    _pcm: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    _starts: list[int] = field(default_factory=list)
    _waited_steps: int = 0

    @property
    def has_sound(self) -> bool:
        """Whether a step of it can be heard now."""
        return len(self._pcm) > 0 or bool(self._starts)

    @property
    def is_over(self) -> bool:
        """Whether all of it has been heard, or more has not come for too long."""
        if self.has_sound or self._phrase is not None:
            return False
        if self._waited_steps >= MAX_STALL_STEPS:
            return True
        return not self.utterance.more and self._given == len(self.utterance.words)

    def advance(self) -> None:
        """Take the phrase that has been spoken, and let the next one be spoken."""
        if self._phrase is not None and self._phrase.done():
            self._take_phrase(self._phrase)
        if self._phrase is None:
            self._give_phrase()

    def step(self) -> NarratedStep | None:
        """Take the next step of its sound; ``None`` where there is none yet."""
        self._waited_steps = 0 if self.has_sound else self._waited_steps + 1
        if not self.has_sound:
            return None
        pcm = np.zeros(STEP_SAMPLES, np.float32)
        part, self._pcm = self._pcm[:STEP_SAMPLES], self._pcm[STEP_SAMPLES:]
        pcm[: len(part)] = part
        word = None
        if self._starts and self._starts[0] < STEP_SAMPLES:
            self._starts.pop(0)
            word = self.utterance.words[self.begun].text
            self.begun += 1
        self._starts = [max(start - STEP_SAMPLES, 0) for start in self._starts]
        return NarratedStep(pcm, word)

    def fade_out(self) -> np.ndarray:
        """Take a last step, which fades into silence."""
        pcm = np.zeros(STEP_SAMPLES, np.float32)
        part = self._pcm[:FADE_SAMPLES]
        pcm[: len(part)] = part * np.linspace(1.0, 0.0, len(part), dtype=np.float32)
        return pcm

    def ended(self) -> Said:
        """Return what became of it, where nothing more of it is heard."""
        return self.utterance.ended(self.begun)

    def _give_phrase(self) -> None:
        left = [word.text for word in self.utterance.words[self._given :][: MOST_WORDS + 1]]
        ahead_steps = len(self._pcm) / STEP_SAMPLES
        if not left or ahead_steps >= AHEAD_STEPS:
            return
        if self._given:
            hurries = ahead_steps < RUNS_DRY_STEPS
        else:
            hurries = len(left) >= FIRST_WORDS or self._waited_steps >= FIRST_WAIT_STEPS
        count = phrase_length(left, is_whole=not self.utterance.more, hurries=hurries)
        if count:
            self._phrase_words = tuple(left[:count])
            self._given += count
            self._phrase = self.speaks.speak(self._phrase_words)

    def _take_phrase(self, phrase: "Future[Sound]") -> None:
        words, self._phrase = self._phrase_words, None
        try:
            pcm, starts_secs = phrase.result()
        except Exception as error:
            logger.error(
                f"Session {self.session_id}: the TTS failed at {' '.join(words)!r}, which is left "
                f"out: {error!r}"
            )
            self._leave_out(len(words))
            return
        offset = len(self._pcm)
        self._starts += [offset + round(secs * SAMPLE_RATE_HZ) for secs in starts_secs]
        pause = np.zeros(round(PAUSE_SECS.get(_last_sign(words[-1]), 0) * SAMPLE_RATE_HZ))
        self._pcm = np.concatenate([self._pcm, pcm, pause.astype(np.float32)])

    def _leave_out(self, count: int) -> None:
        """Leave out the words that were given last."""
        words, first = self.utterance.words, self._given - count
        left_out = tuple(word.text for word in words[first : self._given])
        self.utterance.words = words[:first] + words[self._given :]
        self.utterance.unsayable += left_out
        self._given = first
