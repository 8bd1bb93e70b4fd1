"""The user's words where a conversation moves: each is told once, and none is lost.

The next session hears the user's last seconds again, since words of the moment were on their way
when the one before it ended. What that one told already comes a second time then.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from pipecat_duplex.session.step import HeardWord

SAME_STEPS = 4
"""A word heard again may have moved by so many steps."""

KEPT_WORDS = 64
"""Words that are kept to be known again: more than anybody says in the seconds that are."""


class Shift(NamedTuple):
    """Which step of the conversation a session's step is.

    Parameters:
        from_step: The session's step from which on it holds.
        steps: How much is added. Silence that no session heard lies between two of these.
    """

    from_step: int
    steps: int


class HeardWords:
    """The user's words over all sessions of a conversation, in its own steps."""

    def __init__(self):
        """Initialize before the first session; what was said before it is not told."""
        self._told: deque[HeardWord] = deque(maxlen=KEPT_WORDS)
        self._last_end = 0
        self._again: list[HeardWord] = []
        self._new_from = 0
        self._shifts: Sequence[Shift] = [Shift(0, 0)]
        self._waiting: list[HeardWord] = []

    def move(self, step: int, shifts: Sequence[Shift]) -> None:
        """Another session goes on, which hears again what was said before a step.

        Args:
            step: The conversation's step.
            shifts: Which steps its steps are, in order; the first holds before it, too.
        """
        self._new_from = step
        self._again = list(self._told)
        self._shifts = shifts

    def hear(self, words: Iterable[HeardWord]) -> None:
        """Take what the session of the moment tells, in its own steps."""
        for word in words:
            word = word.moved(self._shift(word.start_step))
            if word.start_step < self._new_from and self._was_told(word):
                continue
            self._told.append(word)
            self._waiting.append(word)
            self._last_end = word.end_step

    def _shift(self, step: int) -> int:
        begun = [each.steps for each in self._shifts if each.from_step <= step]
        return begun[-1] if begun else self._shifts[0].steps

    def take(self) -> tuple[HeardWord, ...]:
        """Return what is to be told now."""
        words, self._waiting = tuple(self._waiting), []
        return words

    def _was_told(self, word: HeardWord) -> bool:
        for known in self._again:
            moved_steps = abs(known.start_step - word.start_step)
            if known.text == word.text and moved_steps <= SAME_STEPS:
                self._again.remove(known)  # The same word may come twice in a row.
                return True
        # In the place of the last one it was heard as another word now.
        return (word.start_step + word.end_step) / 2 < self._last_end
