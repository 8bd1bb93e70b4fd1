"""The user's words, from a recogniser that hears every slot beside the dialogue's model.

The recogniser reads the same codes as the model, and more codebooks of them. What it owes waits in
a queue for each slot: the dialogue's step always comes first, and a recogniser without the time
falls behind.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
from loguru import logger

from pipecat_duplex.session import (
    STEP_SECS,
    TEXT_END_OF_PADDING,
    TEXT_PADDING,
    WORD_START,
    HeardWord,
    one_line,
)

MAX_BEHIND_STEPS = 150
"""A slot that is owed more begins anew with what comes next: 12 s, more than a move leaves."""

MAX_FAILURES = 3
"""Failed steps in a row after which nobody's words are recognised any more."""

MAX_WORD_TOKENS = 64
"""A word that goes on for longer is cut."""

SILENT_TOKENS = (TEXT_PADDING, TEXT_END_OF_PADDING)


class Recognizer(Protocol):
    """A speech-to-text model over all slots. Belongs to the engine's thread.

    Parameters:
        delay_steps: Steps by which its words are behind the voice.
        lead_in: Codes of the silence that it is to hear before a conversation, int, shape
            ``(codebooks, steps)``.
    """

    delay_steps: int
    lead_in: np.ndarray

    def begin(self, slot: int) -> None:
        """Let the next step in a slot be the first."""
        ...

    def step(self, codes: Mapping[int, np.ndarray]) -> dict[int, int]:
        """Run one step for the slots that have codes; the others do not notice.

        Args:
            codes: The user's codes by slot, int, shape ``(codebooks,)``.

        Returns:
            The text token of each of those slots.
        """
        ...

    def piece(self, token: int) -> str | None:
        """Return the SentencePiece piece of a token; None for padding and control tokens."""
        ...

    def text(self, tokens: list[int]) -> str:
        """Return the text that tokens spell."""
        ...

    def warm_up(self, steps: int) -> None:
        """Run a few steps of silence, so that the first conversation does not pay for them."""
        ...

    def restart(self) -> None:
        """Build all state anew."""
        ...

    def close(self) -> None:
        """Let go of all state."""
        ...


class Sound(NamedTuple):
    """A step of the user's audio that waits for the recogniser.

    Parameters:
        step: The step; None for what is heard only so that the recogniser has begun.
        codes: Int, shape ``(codebooks,)``.
    """

    step: int | None
    codes: np.ndarray


class WordCollector:
    """Makes words of a recogniser's tokens, each as soon as the token after it is there."""

    def __init__(self, recognizer: Recognizer):
        """Initialize before the first token."""
        self._recognizer = recognizer
        self._tokens: list[int] = []
        self._start_step = 0

    def take(self, step: int, token: int) -> list[HeardWord]:
        """Take the token that came out with a step; return the words that ended before it."""
        heard_step = step - self._recognizer.delay_steps
        piece = None if token in SILENT_TOKENS else self._recognizer.piece(token)
        words: list[HeardWord] = []
        begins = piece is not None and piece.startswith(WORD_START)
        if self._tokens and (piece is None or begins or len(self._tokens) >= MAX_WORD_TOKENS):
            text = self._recognizer.text(self._tokens).strip()
            self._tokens = []
            if text:
                words.append(HeardWord(text, self._start_step, heard_step))
        if piece is not None:
            if not self._tokens:
                self._start_step = heard_step
            self._tokens.append(token)
        return words


@dataclass(eq=False)
class Ear:
    """What is known of one slot.

    Parameters:
        session_id: Its session, for logs.
        collector: Makes words.
        sounds: What waits.
        words: What was recognised, and not told yet.
        has_begun: Whether it has been given its first sound.
        is_deaf: Whether something failed for it for good.
    """

    session_id: str
    collector: WordCollector
    sounds: deque[Sound] = field(default_factory=deque)
    words: list[HeardWord] = field(default_factory=list)
    has_begun: bool = False
    is_deaf: bool = False
    is_late_told: bool = False


class Ears:
    """The recogniser's side of all slots. Belongs to the engine's thread."""

    def __init__(self, recognizer: Recognizer):
        """Initialize with nobody there."""
        self._recognizer = recognizer
        self._ears: dict[int, Ear] = {}
        self._failures_in_a_row = 0
        self.dropped_steps = 0
        self.failure: str | None = None

    @property
    def behind_steps(self) -> int:
        """Steps that the slot with the longest queue waits for."""
        return max((len(ear.sounds) for ear in self._ears.values()), default=0)

    def join(self, slot: int, session_id: str) -> None:
        """A conversation begins in a slot."""
        self._ears[slot] = Ear(session_id, WordCollector(self._recognizer))

    def leave(self, slot: int) -> None:
        """The conversation in a slot is over."""
        self._ears.pop(slot, None)

    def clear(self) -> None:
        """Every conversation is over, and the recogniser begins anew."""
        self._ears.clear()
        try:
            self._recognizer.restart()
        except Exception as error:
            self._give_up(error)

    def recall(self, slot: int, codes: np.ndarray) -> None:
        """Let a slot hear again what came right before its first step.

        Args:
            slot: The slot, after ``join``.
            codes: The user's, int, shape ``(codebooks, steps)``.
        """
        steps = codes.shape[1]
        for place, sound in enumerate(codes.T):
            self.hear(slot, place - steps, sound)

    def hear(self, slot: int, step: int, codes: np.ndarray) -> None:
        """Take a step of the user's audio.

        Args:
            slot: The slot.
            step: The step, in the session's count.
            codes: Int, shape ``(codebooks,)``.
        """
        ear = self._ears.get(slot)
        if ear is None or ear.is_deaf or self.failure is not None:
            return
        try:
            self._owe(ear, slot, Sound(step, codes))
        except Exception as error:
            self._deafen(ear, error)

    def _owe(self, ear: Ear, slot: int, sound: Sound) -> None:
        if len(ear.sounds) >= MAX_BEHIND_STEPS:
            self._skip(ear)
        if not ear.has_begun:
            ear.has_begun = True
            self._recognizer.begin(slot)
            # The recogniser's beginning takes the place of the first sound that it is given.
            first = [*self._recognizer.lead_in.T, sound.codes]
            ear.sounds.extend(Sound(None, each) for each in (first[0], *first[:-1]))
        ear.sounds.append(sound)

    def take_words(self, slot: int) -> tuple[HeardWord, ...]:
        """Return what was recognised in a slot since this was asked last."""
        ear = self._ears.get(slot)
        if ear is None or not ear.words:
            return ()
        words, ear.words = tuple(ear.words), []
        return words

    def listen(self) -> None:
        """Run one step of the recogniser, for every slot that has a sound. Never raises."""
        batch = {slot: ear.sounds[0] for slot, ear in self._ears.items() if ear.sounds}
        if not batch:
            return
        try:
            tokens = self._recognizer.step({slot: each.codes for slot, each in batch.items()})
        except Exception as error:
            self._note_failure(batch, error)
            return
        self._failures_in_a_row = 0
        for slot, sound in batch.items():
            ear = self._ears[slot]
            ear.sounds.popleft()
            if sound.step is None:
                continue
            try:
                ear.words += ear.collector.take(sound.step, tokens[slot])
            except Exception as error:
                self._deafen(ear, error)

    def _note_failure(self, slots: Mapping[int, Sound], error: Exception) -> None:
        """Let the slots of a step that failed begin anew; they are in no defined state."""
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= MAX_FAILURES:
            self._give_up(error)
            return
        ids = ", ".join(self._ears[slot].session_id for slot in slots)
        logger.opt(exception=error).error(
            f"A step of the recogniser failed; words of the user may be missing in {ids}"
        )
        for slot in slots:
            self._begin_anew(self._ears[slot])

    def _skip(self, ear: Ear) -> None:
        """Leave out what an ear is owed: it would never catch up."""
        self.dropped_steps += len(ear.sounds)
        if not ear.is_late_told:
            ear.is_late_told = True
            logger.warning(
                f"Session {ear.session_id}: the recogniser is slower than real time, and "
                f"{len(ear.sounds) * STEP_SECS:.0f} s of the user's voice were left out. The "
                "conversation itself goes on; fewer slots give it time"
            )
        self._begin_anew(ear)

    def _begin_anew(self, ear: Ear) -> None:
        ear.sounds.clear()
        ear.collector = WordCollector(self._recognizer)
        ear.has_begun = False

    def _deafen(self, ear: Ear, error: Exception) -> None:
        ear.is_deaf = True
        ear.sounds.clear()
        logger.opt(exception=error).error(
            f"Session {ear.session_id}: the user's words are not told any more; it goes on"
        )

    def _give_up(self, error: Exception) -> None:
        self.failure = f"{type(error).__name__}: {one_line(error)}"
        for ear in self._ears.values():
            ear.sounds.clear()
        logger.opt(exception=error).error(
            "The recogniser has failed, and nobody's words are told any more; conversations go on. "
            "Restart the engine to have it back"
        )
