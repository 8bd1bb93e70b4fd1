"""Words that the agent was given to say: those that wait, and those that a session took."""

import asyncio
from collections import Counter
from dataclasses import replace

from pipecat_duplex.session import (
    WORD_START,
    CannotSay,
    DuplexError,
    DuplexSession,
    Said,
    Step,
)
from pipecat_duplex.session.saying import Saying, Sayings, give

MAX_FINISH_SECS = 20.0
"""How long the end of a conversation waits for words that the agent was given."""


class GivenWords:
    """Words that the agent was given to say: those that wait, and those that a session took."""

    def __init__(self):
        """Initialize with nothing to say."""
        self._waiting: list[Saying] = []
        self.session: DuplexSession | None = None
        self.begin_session()

    def begin_session(self) -> None:
        """Forget what the session before took; what waits still waits."""
        self._taken = Sayings()
        self._all_said = asyncio.Event()
        self._is_hushed = False
        self._aside_steps: set[int] = set()
        self._unheard_words: Counter[int] = Counter()

    @property
    def has_unspoken(self) -> bool:
        """Whether the session has taken something that it has not said to the end."""
        return bool(self._taken)

    @property
    def is_hushed(self) -> bool:
        """Whether the session was told to stop, and has not said that it did."""
        return self._is_hushed and bool(self._taken)

    def is_saying(self, number: int | None) -> bool:
        """Whether the session has taken this utterance, and not come to its end."""
        return number is not None and self._taken.get(number) is not None

    async def begin(self, text: str, *, to_context: bool, more: bool) -> int | None:
        """Begin an utterance whose words are still to come; None if there is no session.

        Args:
            text: Its beginning.
            to_context: Whether its words belong into the context.
            more: Whether more follows.

        Raises:
            DuplexError: The session cannot say it, or is over.
        """
        session = self.session
        if session is None:
            return None
        saying = Saying(text, to_context, more)
        number = await give(session, saying)
        if session is self.session:
            self._take(number, saying)
        return number

    async def go_on(self, number: int, text: str, *, more: bool) -> None:
        """Go on with an utterance.

        Args:
            number: Its number.
            text: What follows.
            more: Whether still more follows.

        Raises:
            DuplexError: The session is over.
        """
        saying = self._taken.get(number)
        if saying is None or self.session is None:
            return  # It is over.
        saying.add(text, more=more)
        await self.session.say_more(number, text, more=more)

    async def say(
        self, saying: Saying, session: DuplexSession | None, *, cut_in: bool = False
    ) -> int | None:
        """Hand a saying to the session; while there is none it waits for one.

        Args:
            saying: What to say.
            session: Who says it.
            cut_in: Whether what is being said or queued is dropped.

        Returns:
            The utterance's number, or ``None`` if it waits.

        Raises:
            DuplexError: The session cannot say it, or is over.
        """
        if session is None:
            self._waiting.append(saying)
            return None
        utterance_id = await _give_whole(session, saying, cut_in=cut_in)
        self._take(utterance_id, saying)
        return utterance_id

    def _take(self, number: int, saying: Saying) -> None:
        self._taken.add(number, saying)
        self._is_hushed = False
        self._all_said.clear()

    def wait_first(self, saying: Saying) -> None:
        """Let a saying wait for a session, before all that wait already."""
        self._waiting.insert(0, saying)

    def take_back(self) -> None:
        """Let what the session took and has not begun to say wait for another one, first."""
        self._waiting[:0] = [saying for _, saying in self._taken.items()]
        self._taken.clear()
        self._all_said.set()

    def take_waiting(self) -> list[Saying]:
        """Return what waits for a session, oldest first; it waits no longer."""
        waiting, self._waiting = self._waiting, []
        return waiting

    def hear(self, step: Step) -> tuple[Said, ...]:
        """Take note of a step, and return the utterances that came to their end."""
        if not self._taken.goes_to_context(step.utterance_id):
            self._aside_steps.add(step.index)
        self._taken.hear(step.utterance_id, step.text_piece)
        if self.is_hushed and step.text_piece and step.text_piece.startswith(WORD_START):
            self.leave_out_word(step.utterance_id)
        for said in step.said:
            self._taken.end(said)
        if not self._taken:
            self._all_said.set()
        return tuple(map(self._as_heard, step.said))

    def leave_out_word(self, number: int | None) -> None:
        """Take note that a word which the session began to speak was not heard to its end."""
        if number is not None and self._taken.get(number) is not None:
            self._unheard_words[number] += 1

    def _as_heard(self, said: Said) -> Said:
        """The session tells which words it began; the context has those that were heard."""
        words = said.spoken.split()
        heard = max(0, len(words) - self._unheard_words.pop(said.utterance_id, 0))
        unspoken = " ".join([*words[heard:], said.unspoken]).strip()
        return replace(said, spoken=" ".join(words[:heard]), unspoken=unspoken)

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

    async def hush(self, session: DuplexSession | None = None) -> None:
        """Drop what the session took and has not spoken."""
        session = session or self.session
        if self._taken and session is not None:
            self._is_hushed = True
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


async def _give_whole(session: DuplexSession, saying: Saying, *, cut_in: bool) -> int:
    """Hand over a whole text; words that the model lacks are left out, and the rest is said."""
    try:
        return await give(session, saying, cut_in=cut_in)
    except CannotSay as e:
        if not any(map(str.isalnum, saying.text)):
            raise
        try:
            number = await session.say(saying.text, cut_in=cut_in, more=True)
            await session.say_more(number, "", more=False)
        except (AttributeError, TypeError, CannotSay):
            raise e from None  # It takes whole texts only.
        return number
