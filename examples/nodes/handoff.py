"""Starts a function when the agent says a phrase, for example to transfer the call.

The model has no tools, but it can be heard saying what is to happen. Place it behind the service::

    async def transfer(phrase: str):
        ...  # ask your telephone provider

    Pipeline([
        transport.input(),
        user_aggregator,
        DuplexLLMService(checkpoint="embedded"),
        HandOff(["i will transfer you"], transfer),
        transport.output(),
        assistant_aggregator,
    ])
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from pipecat.frames.frames import Frame, LLMFullResponseStartFrame, TTSTextFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.utils.errors import ErrorCategory

from pipecat_duplex import UnheardTextFrame
from pipecat_duplex.conversation.phrases import words_of


class HandOff(FrameProcessor):
    """Runs an async function each time the agent has said a phrase, beside the pipeline.

    It reads the words that the service sends out to the user, when they are complete: what was not
    heard starts nothing. A phrase lies within one utterance and counts in whole words, or in
    characters where a script puts no spaces between words. Case and punctuation make no difference.

    An error of the function is reported with ``push_error`` and changes nothing else. A function
    that is still running when the pipeline is cleaned up is cancelled.
    """

    def __init__(
        self, phrases: Sequence[str], function: Callable[[str], Awaitable[None]], **kwargs
    ):
        """Initialize the node.

        Args:
            phrases: What to wait for.
            function: Started once for each match, with the phrase as it stands in ``phrases``.
            **kwargs: Additional arguments passed to the parent FrameProcessor.

        Raises:
            ValueError: A phrase holds no word, or ``phrases`` is not a list of phrases.
        """
        super().__init__(**kwargs)
        if isinstance(phrases, str):
            raise ValueError("phrases is one string; put it into a list")
        self._phrases = {phrase: words_of(phrase) for phrase in phrases}
        for phrase, words in self._phrases.items():
            if not words:
                raise ValueError(f"the phrase {phrase!r} holds no word")
        self._function = function
        longest = max((len(words) for words in self._phrases.values()), default=0)
        self._said: deque[str] = deque(maxlen=longest)
        self._tasks: set[asyncio.Task] = set()

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        """Look for the phrases, and pass the frame on.

        Args:
            frame: The frame to process.
            direction: The direction of frame flow.
        """
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMFullResponseStartFrame):
            self._said.clear()
        elif isinstance(frame, UnheardTextFrame):
            self._said.clear()  # What stands around it is no phrase.
        elif isinstance(frame, TTSTextFrame):
            for word in words_of(frame.text):
                self._said.append(word)
                self._start_matches()
        await self.push_frame(frame, direction)

    async def cleanup(self):
        """Cancel what is still running."""
        for task in list(self._tasks):
            await self.cancel_task(task)
        await super().cleanup()

    def _start_matches(self):
        for phrase, words in self._phrases.items():
            if list(self._said)[-len(words) :] == words:
                task = self.create_task(self._run(phrase))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _run(self, phrase: str):
        try:
            await self._function(phrase)
        except Exception as e:
            # The error is the function's: this node goes on.
            await self.push_error(
                f"The hand-off on {phrase!r} failed: {e}",
                exception=e,
                category=ErrorCategory.UNKNOWN,
            )
