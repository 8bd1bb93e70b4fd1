"""Text that comes in pieces: cut into words, and fed to a session as it comes."""

import asyncio
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING

from loguru import logger

from pipecat_duplex.session.errors import CannotSay, DuplexError
from pipecat_duplex.session.saying import MAX_SAY_BYTES

if TYPE_CHECKING:
    from pipecat_duplex.session.contract import DuplexSession


class WordCutter:
    """Cuts pieces of text into whole words: the last one waits for what follows it."""

    def __init__(self) -> None:
        """Initialize without text."""
        self._rest = ""
        self._taken_bytes = 0

    def push(self, text: str) -> str:
        """Take a piece, and return the words that it completes, with the spaces between them.

        Raises:
            CannotSay: The text as a whole is longer than an utterance may be.
        """
        self._taken_bytes += len(text.encode(errors="replace"))
        if self._taken_bytes > MAX_SAY_BYTES:
            raise CannotSay(f"an utterance has at most {MAX_SAY_BYTES} bytes; the rest is not said")
        text = self._rest + text
        end = max((at + 1 for at, sign in enumerate(text) if sign.isspace()), default=0)
        self._rest = text[end:]
        return text[:end]

    def end(self) -> str:
        """Return the last word."""
        rest, self._rest = self._rest, ""
        return rest


class TextStreams:
    """The streams that a session's agent is saying, each read by a task of its own."""

    def __init__(self) -> None:
        """Initialize without streams."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def say(
        self, session: "DuplexSession", stream: AsyncIterable[str], *, cut_in: bool
    ) -> int:
        """Begin to say a stream.

        Args:
            session: Whose agent says it.
            stream: The text, in pieces.
            cut_in: See :meth:`~pipecat_duplex.session.DuplexSession.say`.

        Returns:
            The utterance's number.
        """
        number = await session.say("", cut_in=cut_in, more=True)
        task = asyncio.create_task(_feed(session, number, stream), name=f"{session.id}-{number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return number

    def close(self) -> None:
        """Read no stream any more."""
        for task in self._tasks:
            task.cancel()


async def _feed(session: "DuplexSession", number: int, stream: AsyncIterable[str]) -> None:
    try:
        try:
            async for text in stream:
                await session.say_more(number, text)
        finally:
            await session.say_more(number, "", more=False)
    except DuplexError:
        pass  # The session is over, and tells so itself.
    except Exception as error:
        # The agent has said what came; the words that follow are lost with the stream.
        logger.error(f"Session {session.id}: the text to say broke off: {error!r}")
