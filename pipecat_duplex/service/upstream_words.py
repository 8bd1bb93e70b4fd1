"""Words that come from upstream, from an LLM as it writes: handed to the session as they come."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from pipecat.frames.frames import (
    EagerTranscriptionFrame,
    Frame,
    InputTextRawFrame,
    InterimTranscriptionFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TextFrame,
    TranscriptionFrame,
    TranslationFrame,
    TTSTextFrame,
)

from pipecat_duplex.session import CannotSay, DuplexError

PACE_SECS = 0.02
"""Least time between two pieces of a response on their way to the session."""

_NOT_TO_BE_SAID = (
    TranscriptionFrame,
    InterimTranscriptionFrame,
    EagerTranscriptionFrame,
    TranslationFrame,
    TTSTextFrame,
    InputTextRawFrame,
)


class Mouth(Protocol):
    """Who speaks what is handed over."""

    async def begin(self, text: str, *, to_context: bool, more: bool) -> int | None:
        """Begin an utterance; None if there is no session at the moment."""
        ...

    async def go_on(self, number: int, text: str, *, more: bool) -> None:
        """Go on with one."""
        ...

    async def hush(self) -> None:
        """Drop what was not spoken yet."""
        ...

    @property
    def has_unspoken(self) -> bool:
        """Whether there is anything that was not spoken yet."""
        ...


@dataclass(eq=False)
class Response:
    """One response of an LLM.

    Parameters:
        pending: Text that was not handed over yet.
        to_context: Whether its words belong into the context.
        number: Its utterance, once there is one.
        ended: Whether no more text comes.
        dropped: Whether it is not said any more.
        is_whole: Whether it is handed over as a whole: the server takes no streams.
    """

    pending: str = ""
    to_context: bool = True
    number: int | None = None
    ended: bool = False
    dropped: bool = False
    is_whole: bool = False


class UpstreamWords:
    """Hands the words of an LLM to who speaks them, from the first one on.

    Frames are taken in at once; a task hands them over, so that an interruption never tears a
    request. While the user has the floor, a response that has not begun waits.

    Parameters:
        mouth: Who speaks them.
    """

    def __init__(self, mouth: Mouth, on_error: Callable[[str, Exception], Awaitable[None]]):
        """Initialize without words.

        Args:
            mouth: Who speaks.
            on_error: Called with what cannot be said, and why.
        """
        self.mouth = mouth
        self._on_error = on_error
        self._responses: deque[Response] = deque()
        self._current: Response | None = None
        self._floor_is_free = True
        self._handed_at_secs = 0.0
        self._changed = asyncio.Event()
        self.handed_over = asyncio.Event()
        self.handed_over.set()
        self._numbers: set[int] = set()

    @property
    def is_writing(self) -> bool:
        """Whether a response goes on, or waits to be handed over."""
        responses = (*self._responses, *([self._current] if self._current else []))
        return any(not response.dropped for response in responses)

    @property
    def has_begun(self) -> bool:
        """Whether words of the present response were handed over."""
        return any(response.number is not None for response in self._responses)

    def is_open(self, number: int | None) -> bool:
        """Whether more words of this utterance may come."""
        if number is None:
            return False
        return any(each.number == number and not each.dropped for each in self._responses)

    def gave(self, number: int | None) -> bool:
        """Whether an utterance's words came from here."""
        return number in self._numbers

    def take(self, frame: Frame) -> bool:
        """Take a frame that comes from upstream; tell whether its words are to be said."""
        if isinstance(frame, LLMFullResponseStartFrame):
            if frame.skip_tts:
                return False
            self._end()
            self._current = Response()
            self._responses.append(self._current)
            self.handed_over.clear()
            return True
        if isinstance(frame, LLMFullResponseEndFrame):
            if frame.skip_tts:
                return False
            self._end()
            return True
        if not isinstance(frame, TextFrame) or isinstance(frame, _NOT_TO_BE_SAID):
            return False
        if frame.skip_tts:
            return False
        self._add(frame)
        return True

    def take_whole(self, text: str) -> None:
        """Take a response that is complete; an empty one is none."""
        if not text:
            return
        for frame in (LLMFullResponseStartFrame(), LLMTextFrame(text), LLMFullResponseEndFrame()):
            self.take(frame)

    def drop(self) -> list[str]:
        """Drop all that was not handed over, and what the LLM still writes.

        Returns:
            The texts of responses of which nothing was handed over.
        """
        unsaid = []
        for response in self._responses:
            if response.number is None and response.pending.strip():
                unsaid.append(response.pending.strip())
            response.pending = ""
            response.dropped = response.ended = True
        self._changed.set()
        return unsaid

    def set_floor(self, *, is_free: bool) -> None:
        """Tell whether a response may begin."""
        if is_free != self._floor_is_free:
            self._floor_is_free = is_free
            self._changed.set()

    def begin_session(self) -> None:
        """A session begins; what was not handed over goes to it."""
        self._numbers.clear()
        for response in self._responses:
            response.number = None
        self._changed.set()

    async def run(self) -> None:
        """Hand over, until it is cancelled."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            self.handed_over.clear()
            while self._responses and await self._hand_over(self._responses[0]):
                pass
            if not self.is_writing:
                self.handed_over.set()

    def _add(self, frame: TextFrame) -> None:
        text = frame.text if frame.includes_inter_frame_spaces else f"{frame.text} "
        response = self._current
        if response is None:  # Text outside of a response is one by itself.
            response = Response(ended=True)
            self._responses.append(response)
            self.handed_over.clear()
        if response.dropped:
            return
        response.to_context = frame.append_to_context
        response.pending += text
        self._changed.set()

    def _end(self) -> None:
        if self._current is not None:
            self._current.ended = True
            self._current = None
            self._changed.set()

    async def _hand_over(self, response: Response) -> bool:
        """Hand over what there is of a response; tell whether to look again."""
        if response.number is None and not response.dropped:
            waits = not self._floor_is_free or (response.is_whole and not response.ended)
            if waits or (not response.ended and not response.pending.strip()):
                return False
        if response.number is not None and not response.dropped:
            await self._pace()
        text, response.pending = response.pending, ""
        ended = response.ended
        try:
            if not await self._speak(response, text, ended=ended):
                return False
        except DuplexError as e:
            if isinstance(e, CannotSay) and response.number is None and not response.is_whole:
                # Only the whole text can be said, when there is one.
                response.is_whole = True
                response.pending = text + response.pending
                return True
            response.dropped = response.ended = True
            await self._on_error(text.strip(), e)
        if ended or (response.dropped and response.number is None):
            self._responses.remove(response)
            return True
        return bool(response.pending) or response.ended

    async def _pace(self) -> None:
        """Let an LLM's tokens gather a little: not each one is a message to a server."""
        wait_secs = self._handed_at_secs + PACE_SECS - time.monotonic()
        if wait_secs > 0:
            await asyncio.sleep(wait_secs)
        self._handed_at_secs = time.monotonic()

    async def _speak(self, response: Response, text: str, *, ended: bool) -> bool:
        if response.number is not None:
            if text or ended:
                await self.mouth.go_on(response.number, text, more=not ended)
            return True
        if response.dropped or not text.strip():
            return True
        more = not response.is_whole
        number = await self.mouth.begin(text, to_context=response.to_context, more=more)
        if number is None:
            response.pending = text + response.pending
            return False
        response.number = number
        self._numbers.add(number)
        if response.dropped:  # Meanwhile.
            await self.mouth.hush()
        elif more and ended:
            await self.mouth.go_on(number, "", more=False)
        return True
