"""What the agent was asked to say, and how far it has come."""

from dataclasses import dataclass

from pipecat_duplex.session.errors import CannotSay
from pipecat_duplex.session.step import WORD_START, Said

MAX_SAY_BYTES = 128 * 1024
"""Longest text of one ``say``, in UTF-8: two hours of speech."""


def check_words(text: str) -> None:
    """Raise if a text is none that an agent could be given, whatever its model knows.

    Raises:
        CannotSay: It is longer than :data:`MAX_SAY_BYTES`, or not valid Unicode.
    """
    try:
        length = len(text.encode())
    except UnicodeEncodeError as e:
        raise CannotSay(f"the text is not valid Unicode: {e.reason}") from None
    if length > MAX_SAY_BYTES:
        raise CannotSay(f"the text has {length} bytes; at most {MAX_SAY_BYTES} are taken at once")


@dataclass
class Saying:
    """Words that the agent was asked to say.

    Parameters:
        text: The words.
        to_context: Whether they belong into the conversation's context.
        words_begun: How many of them have begun to sound.
        before: Words that were spoken in a session before.
    """

    text: str
    to_context: bool = True
    words_begun: int = 0
    before: str = ""

    def continued(self) -> "Saying":
        """Return what is left of it, for a session that takes the place of another."""
        words = [word for word in self.text.split() if any(map(str.isalnum, word))]
        begun, rest = words[: self.words_begun], words[self.words_begun :]
        before = " ".join([self.before, *begun]).strip()
        return Saying(" ".join(rest), self.to_context, before=before)

    def ended(self, utterance_id: int) -> Said:
        """Return what is told of what is left, when no more of it will be spoken."""
        return Said(utterance_id, self.before, self.text)


class Sayings:
    """The sayings of a session, by the number of their utterance, oldest first."""

    def __init__(self):
        """Initialize with nothing to say."""
        self._open: dict[int, Saying] = {}

    def __bool__(self) -> bool:
        """Whether there is anything left to be said."""
        return bool(self._open)

    def add(self, utterance_id: int, saying: Saying) -> None:
        """Note that a session took a saying."""
        self._open[utterance_id] = saying

    def goes_to_context(self, utterance_id: int | None) -> bool:
        """Whether a word of this utterance belongs into the context; the model's own words do."""
        saying = None if utterance_id is None else self._open.get(utterance_id)
        return saying is None or saying.to_context

    def hear(self, utterance_id: int | None, piece: str | None) -> None:
        """Take note of a step's piece."""
        saying = None if utterance_id is None else self._open.get(utterance_id)
        if saying is not None and piece is not None and piece.startswith(WORD_START):
            saying.words_begun += 1

    def end(self, said: Said) -> None:
        """Take note that an utterance came to its end."""
        self._open.pop(said.utterance_id, None)

    def get(self, utterance_id: int) -> Saying | None:
        """Return a saying that has not come to its end."""
        return self._open.get(utterance_id)

    def items(self) -> list[tuple[int, Saying]]:
        """Return what has not come to its end, oldest first."""
        return list(self._open.items())

    def clear(self) -> None:
        """Forget everything."""
        self._open.clear()
