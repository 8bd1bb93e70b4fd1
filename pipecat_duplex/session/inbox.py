"""Where a session's steps wait for their one consumer."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from pipecat_duplex.session.errors import SessionEnded
from pipecat_duplex.session.step import Step

MAX_PENDING_STEPS = 4096
"""Frames that may be sent beyond the last step taken from ``steps()``: 5.5 minutes, 32 MB each way.

A session that goes further is ended: its sender or its consumer has lost touch with the model.
"""


class StepInbox:
    """Holds the steps of a session until they are taken, and knows how the session ended.

    Not thread-safe: it belongs to the asyncio loop of its session.
    """

    def __init__(self, session_id: str, end: Callable[[str], object] | None = None):
        """Initialize an empty inbox.

        Args:
            session_id: The session, for errors.
            end: Ends the session for a reason, where :meth:`end` alone does not.
        """
        self._session_id = session_id
        self._end_session = end or self.end
        self._steps: deque[Step] = deque()
        self._news = asyncio.Event()
        self._has_consumer = False
        self._closed = False
        self._end_reason: str | None = None
        self.taken = 0

    @property
    def is_over(self) -> bool:
        """Whether the session has ended, for any reason."""
        return self._closed or self._end_reason is not None

    def check_open(self) -> None:
        """Raise if the session is over.

        Raises:
            SessionEnded: It was closed, or ended for the reason given.
        """
        if self._closed:
            raise SessionEnded(self._session_id, "it was closed")
        if self._end_reason is not None:
            raise SessionEnded(self._session_id, self._end_reason)

    def accept(self, sent: int) -> None:
        """Check that the session takes one more step of the user's; end it if nobody listens.

        Args:
            sent: Steps that were sent before.

        Raises:
            SessionEnded: The session is over, or more than :data:`MAX_PENDING_STEPS` are pending.
        """
        if sent - self.taken >= MAX_PENDING_STEPS:
            self._end_session(f"{MAX_PENDING_STEPS} steps were sent whose answers nobody has taken")
        self.check_open()

    def put(self, step: Step) -> None:
        """Add a step; after the end it is thrown away."""
        if not self.is_over:
            self._steps.append(step)
            self._news.set()

    def end(self, reason: str) -> bool:
        """End the session for a reason; the first one counts. Return whether it was this one."""
        if self.is_over:
            return False
        self._end_reason = reason
        self._news.set()
        return True

    def close(self) -> bool:
        """End the session in an orderly way. Return whether it was still open."""
        was_open = not self.is_over
        self._closed = True
        self._steps.clear()
        self._news.set()
        return was_open

    async def steps(self) -> AsyncIterator[Step]:
        """Iterate over the steps until the session is closed.

        A consumer that was cancelled may call it again and goes on where it stopped.

        Yields:
            The next step.

        Raises:
            SessionEnded: The session ended for a reason; steps that came before come first.
            RuntimeError: There is another consumer.
        """
        while not self._closed:
            if self._steps:
                self.taken += 1
                yield self._steps.popleft()
            elif self._end_reason is not None:
                raise SessionEnded(self._session_id, self._end_reason)
            else:
                await self._wait_for_news()

    async def _wait_for_news(self) -> None:
        if self._has_consumer:
            raise RuntimeError(f"session {self._session_id} has a consumer of its steps already")
        self._has_consumer = True
        try:
            self._news.clear()
            await self._news.wait()
        finally:
            self._has_consumer = False
