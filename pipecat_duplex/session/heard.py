"""The user's words where a conversation moves: each is told once, and none is lost.

The next session hears the user's last seconds again, since words of the moment were on their way
when the one before it ended. What that one told already comes a second time then.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from pipecat_duplex.session.step import HeardWord

SAME_STEPS = 4
"""A word heard again may have moved by so many steps."""

KEPT_WORDS = 64
"""Words that are kept to be known again: more than anybody says in the seconds that are."""


class HeardWords:
    """The user's words over all sessions of a conversation, in its own steps."""

    def __init__(self):
        """Initialize before the first session; what was said before it is not told."""
        self._told: deque[HeardWord] = deque(maxlen=KEPT_WORDS)
        self._last_start = 0
        self._again: list[HeardWord] = []
        self._new_from = 0
        self._waiting: list[HeardWord] = []

    def move(self, step: int) -> None:
        """Another session goes on, which hears again what was said before this step."""
        self._new_from = step
        self._again = list(self._told)

    def hear(self, words: Iterable[HeardWord], first: int) -> None:
        """Take what a session tells.

        Args:
            words: The words, in the session's steps.
            first: The conversation's step in which the session has its step 0.
        """
        for word in words:
            start, end = word.start_step + first, word.end_step + first
            word = replace(word, start_step=start, end_step=end)
            if start < self._new_from and self._was_told(word):
                continue
            self._told.append(word)
            self._waiting.append(word)
            self._last_start = start

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
        return word.start_step < self._last_start
