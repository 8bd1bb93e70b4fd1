"""Several servers as one source of sessions."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from loguru import logger

from pipecat_duplex.remote.backend import RemoteBackend
from pipecat_duplex.remote.session import RemoteSession
from pipecat_duplex.session import (
    AtCapacity,
    DuplexBackend,
    DuplexError,
    InvalidPrompt,
    SessionConfig,
)

CONNECT_SECS = 1.5
"""How long one of several servers may take to answer before the next is tried."""


class RemoteFleet(DuplexBackend):
    """Opens a session on the first of several servers that has room.

    Servers that failed lately come last.

    Example::

        backend = RemoteFleet(["ws://gpu-1:8998", "ws://gpu-2:8998"])
    """

    def __init__(self, urls: Sequence[str], **options: Any):
        """Initialize; nothing is connected yet.

        Args:
            urls: Servers, in the order of preference.
            **options: Arguments of each :class:`~pipecat_duplex.remote.RemoteBackend`.

        Raises:
            DuplexError: There are no URLs, or one cannot be used.
        """
        if not urls:
            raise DuplexError("no server was named")
        options = {"attempts": 1, "connect_secs": CONNECT_SECS, "moves": True} | options
        self._backends = [RemoteBackend(url, **options) for url in urls]
        self._failed_at_secs = dict.fromkeys(self._backends, 0.0)
        self._sessions: list[tuple[RemoteBackend, RemoteSession]] = []

    async def open(self, config: SessionConfig) -> RemoteSession:
        """Begin a conversation on the first server that has room.

        Args:
            config: What it asks of the model.

        Raises:
            AtCapacity: Every server that answers is full.
            InvalidPrompt: No server has the voice.
            DuplexError: None can be reached, or all refuse.
        """
        self._note_failures()
        problems: list[DuplexError] = []
        for backend in sorted(self._backends, key=lambda each: self._failed_at_secs[each]):
            try:
                session = await backend.open(config)
            except DuplexError as error:
                logger.debug(f"{backend.host} was tried: {error}")
                problems.append(error)
                # Neither a full server nor a voice that it lacks is a failure of the server.
                if not isinstance(error, (AtCapacity, InvalidPrompt)):
                    self._failed_at_secs[backend] = time.monotonic()
                continue
            self._sessions.append((backend, session))
            return session
        text = "; ".join(map(str, problems))
        if any(isinstance(each, AtCapacity) for each in problems):
            raise AtCapacity(text)
        if all(isinstance(each, InvalidPrompt) for each in problems):
            raise InvalidPrompt(text)
        raise DuplexError(text)

    async def close(self) -> None:
        """End every session. May be called any number of times."""
        await asyncio.gather(*(backend.close() for backend in self._backends))

    def _note_failures(self) -> None:
        for backend, session in self._sessions:
            if session.failed:
                self._failed_at_secs[backend] = time.monotonic()
        self._sessions = [each for each in self._sessions if not each[1].ended]
