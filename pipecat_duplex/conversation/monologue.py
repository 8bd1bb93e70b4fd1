"""From monologue pieces to words.

The model's text stream holds at most one SentencePiece piece a step: ``▁`` starts a word, byte
pieces such as ``<0xE2>`` have to be joined before they are text, and padding fills the time in
which a word is spoken.
"""

import re
from dataclasses import dataclass

from pipecat_duplex.session import WORD_START

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Word:
    """One word of the monologue.

    Parameters:
        text: The word as it joins what came before: with a leading space, except at the start of
            an utterance.
        first_step: The step of its first piece, in which its sound begins.
        last_step: The step of its last piece.
    """

    text: str
    first_step: int
    last_step: int


class Monologue:
    """Joins pieces to words, and words to the text of the utterance."""

    def __init__(self) -> None:
        """Initialize an empty monologue."""
        self._bytes = bytearray()
        self._first_step = 0
        self._last_step = 0
        self._utterance = ""

    @property
    def utterance(self) -> str:
        """The words of the current utterance so far, or of the last one."""
        return self._utterance

    def feed(self, step_index: int, piece: str | None) -> Word | None:
        """Take the piece of one step.

        Args:
            step_index: The step.
            piece: The piece, or ``None`` for padding.

        Returns:
            The word that this step completes, if any: a word is complete when padding or the next
            word follows.
        """
        if not piece:
            return self._complete()
        word = self._complete() if piece.startswith(WORD_START) else None
        if not self._bytes:
            self._first_step = step_index
        self._last_step = step_index
        self._bytes += piece_bytes(piece)
        return word

    def begin_utterance(self) -> None:
        """Begin an utterance; pieces of its first word may have been fed already."""
        self._utterance = ""

    def end_utterance(self, next_step: int | None = None) -> Word | None:
        """End the utterance. Its text stays in :attr:`utterance` until the next one begins.

        Args:
            next_step: The step in which the next utterance begins, if it does at once: a word that
                began in this step belongs to it.

        Returns:
            The word that was still open, if any.
        """
        if next_step is not None and self._bytes and self._first_step >= next_step:
            return None
        return self._complete()

    def _complete(self) -> Word | None:
        if not self._bytes:
            return None
        text = self._bytes.decode("utf-8", errors="replace")
        self._bytes.clear()
        if not self._utterance:
            text = text.lstrip(" ")
        if not text:
            return None
        self._utterance += text
        return Word(text, self._first_step, self._last_step)


def piece_bytes(piece: str) -> bytes:
    """Return a piece as UTF-8: a byte piece is one byte, which may be part of a character."""
    match = _BYTE_PIECE.fullmatch(piece)
    if match:
        return bytes([int(match[1], 16)])
    return piece.replace(WORD_START, " ").encode()
