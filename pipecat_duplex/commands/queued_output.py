"""Output that never waits for its reader."""

import contextlib
import io
import sys
import threading
from collections import deque
from collections.abc import Iterator
from typing import TextIO

MAX_QUEUED_CHARS = 256 * 1024
"""Text that waits for a reader; what comes beyond is dropped, and counted."""

FLUSH_SECS = 1.0
"""How long a reader may take at the end."""


class QueuedStream(io.TextIOBase):
    """A stream whose ``write`` returns at once: a thread writes.

    A pipe that nobody reads any more would otherwise stop the event loop, and all calls with it.
    """

    def __init__(self, stream: TextIO):
        """Initialize, and start the thread.

        Args:
            stream: Where the text goes.
        """
        self._stream = stream
        self._condition = threading.Condition()
        self._queue: deque[str] = deque()
        self._queued_chars = 0
        self._dropped = 0
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="queued-output", daemon=True)
        self._thread.start()

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The stream's."""
        return self._stream.encoding or "utf-8"

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """The stream's."""
        return self._stream.fileno()

    def writable(self) -> bool:
        """Whether text can be written: yes."""
        return True

    def write(self, text: str, /) -> int:
        """Queue a text, or drop it if nobody reads."""
        with self._condition:
            if self._queued_chars + len(text) > MAX_QUEUED_CHARS:
                self._dropped += 1
            else:
                self._queue.append(text)
                self._queued_chars += len(text)
                self._condition.notify()
        return len(text)

    def flush(self) -> None:
        """Return at once: the thread flushes after each text."""

    def drain(self, secs: float = FLUSH_SECS) -> None:
        """Wait until all is written, but not for long."""
        with self._condition:
            self._is_closing = True
            self._condition.notify()
        self._thread.join(secs)

    def _run(self) -> None:
        while (text := self._take()) is not None:
            # A reader who is gone, or a text that the encoding does not have, is no reason to stop.
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text)
                self._stream.flush()

    def _take(self) -> str | None:
        with self._condition:
            self._condition.wait_for(lambda: self._queue or self._is_closing)
            if not self._queue:
                return None
            text = self._queue.popleft()
            self._queued_chars -= len(text)
            dropped, self._dropped = self._dropped, 0
        told = f"({dropped} lines were dropped here: nobody read them)\n" if dropped else ""
        return text + told


@contextlib.contextmanager
def queued_output() -> Iterator[None]:
    """Let nothing that this process prints or logs wait for its reader."""
    before = sys.stdout, sys.stderr
    streams = [QueuedStream(stream) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in streams:
            stream.drain()
