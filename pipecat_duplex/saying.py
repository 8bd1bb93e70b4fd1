"""What the agent was asked to say, and how far it has come."""

import asyncio
from dataclasses import dataclass

from pipecat_duplex.conversation.monologue import WORD_START
from pipecat_duplex.session import DuplexError, DuplexSession, Said, Step

MAX_FINISH_SECS = 20.0
"""How long the end of a conversation waits for words that the agent was given."""


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


class GivenWords:
    """What an agent was asked to say: what waits for a session, and what a session took."""

    def __init__(self):
        """Initialize with nothing to say."""
        self._waiting: list[Saying] = []
        self.begin_session()

    def begin_session(self) -> None:
        """Forget what the session before took; what waits still waits."""
        self._taken = Sayings()
        self._all_said = asyncio.Event()
        self._aside_steps: set[int] = set()

    async def say(
        self, saying: Saying, session: DuplexSession | None, *, cut_in: bool = False
    ) -> None:
        """Hand a saying to the session; while there is none it waits for one.

        Args:
            saying: What to say.
            session: Who says it.
            cut_in: Whether what is being said or queued is dropped.

        Raises:
            DuplexError: The session cannot say it, or is over.
        """
        if session is None:
            self._waiting.append(saying)
            return
        utterance_id = await session.say(saying.text, cut_in=cut_in)
        self._taken.add(utterance_id, saying)
        self._all_said.clear()

    def wait_first(self, saying: Saying) -> None:
        """Let a saying wait for a session, before all that wait already."""
        self._waiting.insert(0, saying)

    def take_waiting(self) -> list[Saying]:
        """Return what waits for a session, oldest first; it waits no longer."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def hear(self, step: Step) -> tuple[Said, ...]:
        """Take note of a step, and return the utterances that came to their end."""
        if not self._taken.goes_to_context(step.utterance_id):
            self._aside_steps.add(step.index)
        self._taken.hear(step.utterance_id, step.text_piece)
        for said in step.said:
            self._taken.end(said)
        if not self._taken:
            self._all_said.set()
        return step.said

    def end_session(self) -> list[Said]:
        """Return what the session took and will not speak to the end, oldest first."""
        left = [saying.continued().ended(number) for number, saying in self._taken.items()]
        self._taken.clear()
        self._all_said.set()
        return left

    def is_aside(self, step_index: int) -> bool:
        """Whether a word that began with this step stays out of the context."""
        return step_index in self._aside_steps

    def end_utterance(self) -> None:
        """Take note that the agent fell silent: its words have all been asked about."""
        self._aside_steps.clear()

    async def hush(self, session: DuplexSession | None) -> None:
        """Drop what the session took and has not spoken."""
        if self._taken and session is not None:
            try:
                await session.hush()
            except DuplexError:
                pass  # The session is over, and with it what it was to say.

    async def finish(self, max_secs: float) -> bool:
        """Wait until all that the session took was said or dropped; False if it takes longer."""
        if not self._taken:
            return True
        try:
            await asyncio.wait_for(self._all_said.wait(), max_secs)
        except TimeoutError:
            return False
        return True
