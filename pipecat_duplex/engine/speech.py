"""Words put in the agent's mouth: which token the monologue gets in each step.

The model decides on a token first; a speaker may put another in its place before the sound is made
of it. The model keeps the pace: where it would begin a word it gets ours, and where it pauses, it
pauses. In Moshi's monologue a word's pieces come one a step from its onset, padding follows while
it sounds, and :data:`~pipecat_duplex.session.TEXT_END_OF_PADDING` stands on the step before a word
that follows padding. No torch here: both runtimes ask the same speaker.
"""

import threading
from collections import deque
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import NamedTuple

import numpy as np

from pipecat_duplex.conversation.barge_in import HEARD, BargeIn, Overlap
from pipecat_duplex.conversation.user_ear import UserEar
from pipecat_duplex.conversation.user_said import UserSaid
from pipecat_duplex.session import (
    SAMPLE_RATE_HZ,
    STEP_SAMPLES,
    TEXT_END_OF_PADDING,
    TEXT_PADDING,
    Said,
    Step,
)

MAX_PAUSE_STEPS = 8
"""Padding that the model may put between two of our words; then the next word comes anyway."""

CLOSING_STEPS = 6
"""Padding in a row, of the model's own choice, after which the last word has sounded."""

MAX_CLOSING_STEPS = 25
"""How long a model that wants to go on with words of its own is kept from it after ours."""

GAP_STEPS = 4
"""Silence between two words that is no end of what is said."""

YIELDED_STEPS = 2
"""Padding in a row, of the model's own choice, after which it has given up the floor as well."""

SILENT_STEPS = 5
"""Who gave way is silent for so long at least (0.4 s): sooner, an answer sounds like going on."""

OWN_STOP_STEPS = 6
"""Steps without word or sound after which an utterance of the model's own is over (0.48 s)."""

FIRST_STEPS = 2
"""Steps of a session before given words: no model learned to speak in the very first one."""

MAX_STALL_STEPS = 250
"""How long an utterance waits for more words; then it is over (20 s)."""

MAX_WAITING = 64
"""Utterances that may wait to be said."""

SOUND_LEVEL_DB = -50.0
"""Agent audio above this level (dBFS, RMS of a step) is speech."""


FADE_SAMPLES = SAMPLE_RATE_HZ // 25
"""How quickly a voice that is cut off fades out (40 ms)."""

FALLING = np.linspace(1.0, 0.0, FADE_SAMPLES, dtype=np.float32)
"""The fade."""


class SpelledWord(NamedTuple):
    """A word, as its text was given and as the monologue spells it.

    Parameters:
        text: The word, with its punctuation.
        tokens: Its pieces, at least one.
    """

    text: str
    tokens: tuple[int, ...]


@dataclass(slots=True)
class Utterance:
    """Words to be said.

    Parameters:
        id: Its number in the session, from 1.
        words: What to say.
        more: Whether more words follow.
        unsayable: Words that were left out, as they were written.
    """

    id: int
    words: tuple[SpelledWord, ...]
    more: bool = False
    unsayable: tuple[str, ...] = ()

    @property
    def can_begin(self) -> bool:
        """Whether there is something to say, or nothing more to wait for."""
        return bool(self.words) or not self.more

    def add(
        self, words: tuple[SpelledWord, ...], *, more: bool, unsayable: tuple[str, ...] = ()
    ) -> None:
        """Add what follows."""
        self.words += words
        self.unsayable += unsayable
        self.more = more

    def ended(self, spoken_words: int) -> Said:
        """Return what became of it, where so many of its words were spoken."""
        words = [word.text for word in self.words]
        spoken, unspoken = words[:spoken_words], words[spoken_words:]
        return Said(self.id, " ".join(spoken), " ".join(unspoken), self.unsayable)


class SpokenStep(NamedTuple):
    """What a speaker knows of the token that a step gives out.

    Parameters:
        utterance_id: The utterance that the step's piece belongs to, or ``None``.
        said: Utterances that came to their end.
        wish: Whether the model would have begun words of its own, which are kept back.
    """

    utterance_id: int | None = None
    said: tuple[Said, ...] = ()
    wish: bool = False


class _Mode(Enum):
    """Where in an utterance the speaker is.

    Attributes:
        BOUNDARY: Between two words; the model says when the next one begins.
        DUE: The next word begins now.
        WORD: In the middle of a word.
        CLOSING: After the last word, while it sounds.
    """

    BOUNDARY = auto()
    DUE = auto()
    WORD = auto()
    CLOSING = auto()


class Speaker:
    """Says what was queued, one utterance after another.

    An utterance waits until the model has come to the end of its own words. From silence it begins
    with the next step. While the user speaks over it, a pause that the model makes between two of
    our words is a yield: what is left is dropped. Where an utterance has said all that it was
    given so far, it pauses.

    Thread-safe: words are queued in asyncio and chosen in the engine's thread.
    """

    def __init__(self):
        """Initialize with nothing to say."""
        self._lock = threading.Lock()
        self._queue: deque[Utterance] = deque()
        self._now: Utterance | None = None
        self._cuts_in = False
        self._held = False
        self._mode = _Mode.BOUNDARY
        self._word = 0
        self._piece = 0
        self._pause_steps = 0
        self._closing_steps = 0
        self._stall_steps = 0
        self._quiet_steps = OWN_STOP_STEPS
        self._padding_steps = 0
        self._first_steps = FIRST_STEPS
        self._ear = UserEar()
        self._user_spoke_before = False
        self._chosen = SpokenStep()
        self._ended: list[Said] = []
        self._barge_in = BargeIn()
        self._gives_way = False
        self._was_heard = True
        self._user_said = UserSaid()
        self._answer_is_due = False

    @property
    def is_active(self) -> bool:
        """Whether :meth:`choose` has anything to decide."""
        return self.has_words or self._held or self._gives_way or self._answer_is_due

    @property
    def has_words(self) -> bool:
        """Whether anything is being said, or queued."""
        return self._now is not None or bool(self._queue)

    @property
    def waiting(self) -> int:
        """Utterances that have not begun."""
        return len(self._queue)

    @property
    def untold(self) -> int:
        """Utterances that have ended, which no step has told yet."""
        return len(self._ended)

    @property
    def silent_steps(self) -> int:
        """For how many steps neither side has spoken."""
        return min(self._quiet_steps, self._ear.quiet_steps)

    def say(self, utterance: Utterance, *, cut_in: bool = False) -> None:
        """Queue an utterance.

        Args:
            utterance: What to say.
            cut_in: Do not wait: drop what is being said or queued, and begin where the model would
                begin its next word.
        """
        with self._lock:
            if cut_in:
                self._drop_all()
                self._cuts_in = True
            self._queue.append(utterance)

    def say_more(
        self,
        utterance_id: int,
        words: tuple[SpelledWord, ...],
        *,
        more: bool,
        unsayable: tuple[str, ...] = (),
    ) -> bool:
        """Add to an utterance that was begun with ``more``.

        Args:
            utterance_id: Its number.
            words: What follows.
            more: Whether still more follows.
            unsayable: Words that were left out.

        Returns:
            Whether it takes them: False once it is over.
        """
        with self._lock:
            for utterance in (self._now, *self._queue):
                if utterance is not None and utterance.id == utterance_id and utterance.more:
                    utterance.add(words, more=more, unsayable=unsayable)
                    return True
            return False

    def go_on(self) -> None:
        """Take note that the conversation did not begin here: words may come at once."""
        with self._lock:
            self._first_steps = 0

    def hold(self, held: bool) -> None:
        """Keep the model's own words back, or no longer."""
        with self._lock:
            self._held = held

    def hush(self) -> None:
        """Drop what is being said, and what is queued."""
        with self._lock:
            self._drop_all()

    def hear(self, overlap: Overlap) -> bool:
        """Take note of what the user does, before a step.

        The agent gives way to who talks over it, and answers who has waited long.

        Returns:
            Whether the model is to hear it.
        """
        is_heard = self.is_heard
        if self._barge_in.step(overlap if is_heard else None):
            self.give_way()
        speaks = is_heard or self.has_words or self._held
        self._answer_is_due = self._user_said.step(overlap, agent_speaks=speaks)
        return not is_heard or overlap.floor >= HEARD

    def give_way(self) -> None:
        """Fall silent: the user has the floor. What is being said or queued is dropped."""
        with self._lock:
            self._drop_all()
            self._gives_way, self._pause_steps, self._closing_steps = True, 0, 0

    def observe(self, text_token: int, agent_level_db: float, user_level_db: float) -> None:
        """Take note of a step that was computed.

        Args:
            text_token: Its monologue token.
            agent_level_db: Level of the agent's audio, dBFS.
            user_level_db: Level of the user's, dBFS.
        """
        self._first_steps = max(self._first_steps - 1, 0)
        is_word = text_token not in (TEXT_PADDING, TEXT_END_OF_PADDING)
        speaks = is_word or agent_level_db >= SOUND_LEVEL_DB
        self._quiet_steps = 0 if speaks else self._quiet_steps + 1
        self._padding_steps = 0 if is_word else self._padding_steps + 1
        self._ear.observe(user_level_db)

    def choose(self, sampled: int) -> int:
        """Choose the monologue token of a step.

        Args:
            sampled: What the model chose.

        Returns:
            The token that it gets.
        """
        with self._lock:
            if self._now is None:
                self._begin()
            token, utterance_id, wish = sampled, None, False
            if self._gives_way:
                token = self._keep_silent(sampled)
            elif self._now is not None:
                utterance = self._now
                token = self._force(sampled)
                if token not in (TEXT_PADDING, TEXT_END_OF_PADDING) and self._now is utterance:
                    utterance_id = utterance.id
            elif self._held:
                token, wish = TEXT_PADDING, sampled != TEXT_PADDING
            elif self._answer_is_due and sampled == TEXT_PADDING:
                token = TEXT_END_OF_PADDING  # A word follows it.
            self._chosen = SpokenStep(utterance_id, wish=wish)
            return token

    def sound(self, step: Step) -> Step:
        """Return what is heard of a step: the model's own sound, until it gives way."""
        with self._lock:
            if not self._gives_way:
                self._was_heard = True
                return step
            pcm = np.zeros(STEP_SAMPLES, np.float32)
            if self._was_heard:
                pcm[:FADE_SAMPLES] = step.pcm[:FADE_SAMPLES] * FALLING
            self._was_heard = False
            return replace(step, pcm=pcm, text_token=TEXT_PADDING, text_piece=None)

    def _keep_silent(self, sampled: int) -> int:
        """Keep silent until the model wanted to be; what it begins after that is an answer."""
        self._closing_steps += 1
        if self._pause_steps < YIELDED_STEPS:
            self._pause_steps = self._pause_steps + 1 if sampled == TEXT_PADDING else 0
        has_yielded = self._pause_steps >= YIELDED_STEPS and self._closing_steps >= SILENT_STEPS
        if has_yielded or self._closing_steps >= MAX_CLOSING_STEPS:
            self._gives_way = False
        return TEXT_PADDING

    def close(self) -> None:
        """Say nothing more: the session is over."""

    def take_spoken(self) -> SpokenStep:
        """Return what is known of the token chosen last, whose step is given out next."""
        with self._lock:
            ended, self._ended = self._ended, []
            chosen, self._chosen = self._chosen, SpokenStep()
            return SpokenStep(chosen.utterance_id, tuple(ended), chosen.wish)

    def _begin(self) -> None:
        quiet = self.is_quiet
        ready = next((each for each in self._queue if each.can_begin), None)
        if ready is None or not (quiet or self._cuts_in):
            return
        self._queue.remove(ready)
        self._now = ready
        self._gives_way = False
        self._word = 0
        if not ready.words:  # None of them could be said.
            self._finish()
            return
        self._cuts_in = False
        self._piece = self._pause_steps = self._closing_steps = self._stall_steps = 0
        # From silence there is no word to wait for; padding that has passed is waited for no more.
        self._pause_steps = MAX_PAUSE_STEPS if quiet else self._padding_steps
        self._mode = _Mode.BOUNDARY
        self._user_spoke_before = self._ear.hears_user

    @property
    def is_heard(self) -> bool:
        """Whether the agent speaks, pauses between its words included."""
        return self._quiet_steps < GAP_STEPS and not self._gives_way

    @property
    def is_quiet(self) -> bool:
        """Whether the model's own utterance is over."""
        return self._quiet_steps >= OWN_STOP_STEPS

    def _force(self, sampled: int) -> int:
        if self._first_steps:
            return TEXT_PADDING
        if not self._ear.hears_user:
            self._user_spoke_before = False
        match self._mode:
            case _Mode.BOUNDARY:
                return self._pause(sampled)
            case _Mode.CLOSING:
                return self._close(sampled)
            case _:
                return self._next_piece()

    def _pause(self, sampled: int) -> int:
        assert self._now is not None
        if self._word == len(self._now.words):
            return self._stall(sampled)
        if sampled == TEXT_PADDING:
            cuts_in_at_the_end = self._word == 0 and self.is_quiet
            if self._pause_steps < MAX_PAUSE_STEPS and not cuts_in_at_the_end:
                self._pause_steps += 1
                return TEXT_PADDING
            if self._word and self._ear.hears_user and not self._user_spoke_before:
                self._drop_all()
                return sampled
        if sampled in (TEXT_PADDING, TEXT_END_OF_PADDING):
            self._mode = _Mode.DUE
            return TEXT_END_OF_PADDING
        return self._next_piece()

    def _stall(self, sampled: int) -> int:
        """Pause until there are more words; from then on the next one is due."""
        assert self._now is not None
        if not self._now.more:
            self._mode = _Mode.CLOSING
            return self._close(sampled)
        self._pause_steps = min(self._pause_steps + 1, MAX_PAUSE_STEPS)
        self._stall_steps += 1
        if self._stall_steps >= MAX_STALL_STEPS:
            self._finish()
        return TEXT_PADDING

    def _next_piece(self) -> int:
        assert self._now is not None
        tokens = self._now.words[self._word].tokens
        token = tokens[self._piece]
        self._piece += 1
        self._mode = _Mode.WORD
        if self._piece == len(tokens):
            self._piece = self._pause_steps = self._stall_steps = 0
            self._word += 1
            goes_on = self._now.more or self._word < len(self._now.words)
            self._mode = _Mode.BOUNDARY if goes_on else _Mode.CLOSING
        return token

    def _close(self, sampled: int) -> int:
        """Keep the model from going on with words of its own until ours have sounded."""
        self._pause_steps = self._pause_steps + 1 if sampled == TEXT_PADDING else 0
        self._closing_steps += 1
        if self._pause_steps >= CLOSING_STEPS or self._closing_steps >= MAX_CLOSING_STEPS:
            self._finish()
        return TEXT_PADDING

    def _finish(self) -> None:
        assert self._now is not None
        self._ended.append(self._now.ended(self._word))
        self._now = None

    def _drop_all(self) -> None:
        if self._now is not None:
            self._finish()
        self._ended += [utterance.ended(0) for utterance in self._queue]
        self._queue.clear()
        self._cuts_in = False
