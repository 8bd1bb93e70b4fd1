"""What was heard of an utterance, in writing."""

from dataclasses import dataclass

from pipecat_duplex.conversation.monologue import Word


@dataclass(frozen=True, slots=True)
class Caption:
    """A piece of the written utterance.

    Parameters:
        text: A word, or a mark for words that were not heard. It joins what came before.
        first_step: The step in which its sound begins.
        unheard: The words that were not heard; empty if this is a word that was.
    """

    text: str
    first_step: int
    unheard: str = ""


class Captions:
    """Writes down the words of an utterance, and marks those whose sound was left out.

    "two plus two is five" of which the second "two" was not heard becomes "two plus [not heard:
    two] is five". Words in a row get one mark.
    """

    def __init__(self) -> None:
        """Initialize with nothing written."""
        self._text = ""
        self._unheard: list[Word] = []

    @property
    def text(self) -> str:
        """What is written of the current utterance, or of the last one."""
        return self._text

    def begin_utterance(self) -> None:
        """Begin an utterance."""
        self._text = ""
        self._unheard.clear()

    def feed(self, word: Word, *, heard: bool) -> list[Caption]:
        """Take the next word.

        Args:
            word: The word.
            heard: Whether its sound was heard.

        Returns:
            What is to be written: nothing while the words that were not heard go on.
        """
        if not heard:
            self._unheard.append(word)
            return []
        return [*self._mark(), self._write(Caption(word.text, word.first_step))]

    def end_utterance(self) -> list[Caption]:
        """Return what is still to be written. :attr:`text` stays until the next one begins."""
        return self._mark()

    def _mark(self) -> list[Caption]:
        if not self._unheard:
            return []
        words, self._unheard = self._unheard, []
        unheard = "".join(word.text for word in words).strip()
        text = f" [not heard: {unheard}]"
        return [self._write(Caption(text, words[0].first_step, unheard))]

    def _write(self, caption: Caption) -> Caption:
        if not self._text:
            caption = Caption(caption.text.lstrip(" "), caption.first_step, caption.unheard)
        self._text += caption.text
        return caption
