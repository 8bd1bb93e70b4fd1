"""From the text that servers send back to SentencePiece pieces."""

from collections import deque

from pipecat_duplex.session import WORD_START


class PieceQueue:
    """Texts that came, to be given out one a step, as pieces.

    Servers write a space where the piece has ``▁``. The Rust backend decodes each piece behind the
    token before it, which costs a word its space where that is padding: at the beginning, and after
    a step without text. The pieces of a word come in steps without a gap, so a text behind a gap
    begins a word.
    """

    def __init__(self, *, strips_after_padding: bool):
        """Initialize before the first text.

        Args:
            strips_after_padding: Whether the server leaves out the space of a word after padding.
        """
        self._strips_after_padding = strips_after_padding
        self._after_gap = True
        self._pieces: deque[str] = deque()

    def put(self, text: str) -> None:
        """Take a text."""
        if not text:
            return
        if self._strips_after_padding and self._after_gap and not text.startswith(" "):
            text = " " + text
        self._after_gap = False
        self._pieces.append(text.replace(" ", WORD_START))

    def take(self) -> str | None:
        """Give out the piece of a step, if there is one."""
        if self._pieces:
            return self._pieces.popleft()
        self._after_gap = True
        return None
