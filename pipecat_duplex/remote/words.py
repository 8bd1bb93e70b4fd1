"""From the text that servers send back to SentencePiece pieces."""

from collections import deque

from pipecat_duplex.session import WORD_START


class PieceQueue:
    """Texts that came, to be given out one a step, as pieces.

    Servers write a space where the piece has ``▁``. The Rust backend decodes each piece behind the
    one before, which costs the first word of a session its space: it gets it back.
    """

    def __init__(self, *, strips_first: bool):
        """Initialize before the first text.

        Args:
            strips_first: Whether the server leaves out the first word's space.
        """
        self._strips_first = strips_first
        self._pieces: deque[str] = deque()

    def put(self, text: str) -> None:
        """Take a text."""
        if not text:
            return
        if self._strips_first and not text.startswith(" "):
            text = " " + text
        self._strips_first = False
        self._pieces.append(text.replace(" ", WORD_START))

    def take(self) -> str | None:
        """Give out the piece of a step, if there is one."""
        return self._pieces.popleft() if self._pieces else None
