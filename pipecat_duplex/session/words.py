"""Words for the agent of a conversation, given to the session of the moment."""

import asyncio
from collections.abc import Callable

from loguru import logger

from pipecat_duplex.session.contract import DuplexSession
from pipecat_duplex.session.errors import DuplexError, SessionEnded
from pipecat_duplex.session.inbox import StepInbox
from pipecat_duplex.session.saying import Saying, give
from pipecat_duplex.session.step import CanSay
from pipecat_duplex.session.utterances import Utterances

ASK_AGAIN_SECS = 0.05
"""How often a conversation that moves is looked at for a question that waits."""


class Words:
    """Gives words to a session, and what it has not said to the next one.

    One thing at a time, in the order of the calls. While there is no session, words wait.
    """

    def __init__(self, inbox: StepInbox, session: Callable[[], DuplexSession | None]):
        """Initialize without words.

        Args:
            inbox: Of the conversation, which tells whether it is over.
            session: Returns the session that takes words at this moment.
        """
        self.utterances = Utterances()
        self._inbox = inbox
        self._session = session
        self._count = 0
        self._turn = asyncio.Lock()

    async def say(self, text: str, *, cut_in: bool, more: bool) -> int:
        """Let the agent speak a text; see :class:`~pipecat_duplex.session.DuplexSession`."""
        async with self._turn:
            self._inbox.check_open()
            saying = Saying(text, more=more)
            number = self._count + 1
            inner = await self._say_now(saying, cut_in=cut_in)
            if inner is None:
                if cut_in:
                    self.utterances.drop_waiting()
                self.utterances.wait(number, saying)
            else:
                self.utterances.give(inner, number, saying)
            self._count = number
            return number

    async def _say_now(self, saying: Saying, *, cut_in: bool) -> int | None:
        """Hand a saying to the session; None if the conversation moves."""
        session = self._session()
        if session is None:
            return None
        try:
            inner = await give(session, saying, cut_in=cut_in)
        except SessionEnded:
            self._inbox.check_open()
            return None
        return inner if session is self._session() else None  # It has moved meanwhile.

    async def can_say(self, text: str) -> CanSay:
        """Tell whether the model has the words; while it moves, this waits for the next session."""
        while True:
            self._inbox.check_open()
            session = self._session()
            if session is not None:
                try:
                    return await session.can_say(text)
                except SessionEnded:
                    pass  # The next session is asked.
            await asyncio.sleep(ASK_AGAIN_SECS)

    async def say_more(self, utterance_id: int, text: str, *, more: bool) -> None:
        """Add to an utterance."""
        async with self._turn:
            self._inbox.check_open()
            waiting = self.utterances.waiting(utterance_id)
            if waiting is not None:
                waiting.add(text, more=more)
                return
            session, given = self._session(), self.utterances.given(utterance_id)
            if given is None or session is None:
                return  # It is over.
            inner, saying = given
            saying.add(text, more=more)
            try:
                await session.say_more(inner, text, more=more)
            except SessionEnded:
                self._inbox.check_open()  # It moves, and takes the text along.

    async def hush(self) -> None:
        """Drop the rest of all given words."""
        async with self._turn:
            self._inbox.check_open()
            self.utterances.drop_waiting()
            session = self._session()
            if session is not None:
                try:
                    await session.hush()
                except SessionEnded:
                    self._inbox.check_open()

    async def say_again(self, session: DuplexSession) -> None:
        """Give a session what waits: what the one before had not said, and what came since."""
        async with self._turn:
            waiting = self.utterances.take_waiting()
            try:
                while waiting:
                    number, rest = waiting[0]
                    await self._say_rest(session, number, rest)
                    waiting.pop(0)
            except SessionEnded:
                pass  # It moves again.
            finally:
                for number, rest in waiting:
                    self.utterances.wait(number, rest)

    async def _say_rest(self, session: DuplexSession, number: int, rest: Saying) -> None:
        if not rest.text and not rest.more:
            self.utterances.refuse(number, rest)
            return
        try:
            # What was being said goes on at once, at the next word.
            inner = await give(session, rest, cut_in=bool(rest.before))
            self.utterances.give(inner, number, rest)
        except SessionEnded:
            raise
        except DuplexError as error:
            logger.warning(f"Session {session.id}: {rest.text!r} will not be said: {error}")
            self.utterances.refuse(number, rest)
