"""What the agent was asked to say, and how far it has come."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipecat_duplex.session.errors import CannotSay
from pipecat_duplex.session.spoken_form import spoken_words
from pipecat_duplex.session.step import WORD_START, Said

if TYPE_CHECKING:
    from pipecat_duplex.session.contract import DuplexSession

MAX_SAY_BYTES = 128 * 1024
"""Longest text of one ``say``, in UTF-8: two hours of speech."""


def check_words(text: str) -> None:
    """Check that a text can be given to an agent, apart from the words that its model has.

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
        more: Whether more words follow.
        begun: How each word that has begun to sound is spelled, without space.
        before: Words that were spoken in a session before.
    """

    text: str
    to_context: bool = True
    more: bool = False
    begun: list[str] = field(default_factory=list)
    before: str = ""

    def add(self, text: str, *, more: bool) -> None:
        """Add what follows.

        Args:
            text: The text, cut anywhere.
            more: Whether still more follows.
        """
        self.text += text
        self.more = more

    def continued(self) -> "Saying":
        """Return what is left of it, for a session that takes the place of another."""
        written = self.text.split()
        count = self._words_begun(written)
        rest = " ".join(written[count:])
        # A stream's last word is whole only if a space follows it.
        if rest and self.text[-1:].isspace():
            rest += " "
        sounded = [word for word in written[:count] if any(map(str.isalnum, word))]
        before = " ".join([self.before, *sounded]).strip()
        return Saying(rest, self.to_context, self.more, before=before)

    def _words_begun(self, written: list[str]) -> int:
        """Return how many words of the text have begun, counting those that were left out.

        A written word may be spoken as several, or not at all where the model lacks it.
        """
        spoken = [(at, _sound(s)) for at, w in enumerate(written) for s in spoken_words(w)]
        place = count = 0
        for sound in map(_sound, self.begun):
            matches = (i for i in range(place, len(spoken)) if spoken[i][1].startswith(sound))
            place = next(matches, place)
            if place < len(spoken):
                count = spoken[place][0] + 1
            place += 1
        return count

    def ended(self, utterance_id: int) -> Said:
        """Return what is told of what is left, when no more of it will be spoken."""
        return Said(utterance_id, self.before, self.text.strip())


async def give(session: "DuplexSession", saying: Saying, *, cut_in: bool = False) -> int:
    """Hand a saying to a session, and return the number of the utterance.

    Raises:
        DuplexError: The session cannot say it, or is over.
    """
    if saying.more:
        return await session.say(saying.text, cut_in=cut_in, more=True)
    return await session.say(saying.text, cut_in=cut_in)


def _sound(word: str) -> str:
    """Return a word as it sounds: without case and punctuation."""
    return "".join(filter(str.isalnum, word.lower()))


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
            saying.begun.append(piece.removeprefix(WORD_START))

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
