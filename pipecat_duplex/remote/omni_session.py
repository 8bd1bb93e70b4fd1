"""One conversation on vLLM-Omni's duplex endpoint."""

import contextlib
import time

import numpy as np
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from pipecat_duplex import protocol
from pipecat_duplex.conversation.cutter import StepCutter
from pipecat_duplex.remote import omni_message
from pipecat_duplex.remote.chunks import Answer, ChunkPairing
from pipecat_duplex.remote.session import UNKNOWN_TOKEN, RemoteLimits, RemoteSession, in_one_line
from pipecat_duplex.session import (
    STEP_SECS,
    TEXT_PADDING,
    SessionConfig,
    Step,
    StepTiming,
)

HEARTBEAT_SECS = 30.0
"""How often the server hears that somebody is there: without audio, a session ends after 300 s."""

MAX_TOLD = 300
"""Characters of a server's words that are passed on."""

HARMLESS = ("invalid_event_ack",)
"""Codes of errors after which a call goes on as before."""


class OmniSession(RemoteSession):
    """A conversation over a WebSocket, in vLLM-Omni's messages.

    What the protocol lacks (given words, histories, tokens) is refused as with any other server
    that is not this package's.
    """

    def __init__(
        self,
        connection: ClientConnection,
        *,
        host: str,
        name: str,
        config: SessionConfig,
        context_steps: int,
        limits: RemoteLimits,
    ):
        """Initialize around a connection whose session has begun.

        Args:
            connection: The connection.
            host: Its server, for errors.
            name: The server's name for the session.
            config: What the server was asked for.
            context_steps: Steps that the server's model takes.
            limits: When the server counts as dead.
        """
        context_secs = context_steps * STEP_SECS
        asked_secs = config.max_secs if config.max_secs is not None else float("inf")
        self._max_steps = min(context_steps, round(asked_secs / STEP_SECS, 6))
        self._full_reason = f"its context is full: {host} holds {context_secs:.0f} s of a call"
        if asked_secs <= context_secs:
            self._full_reason = f"it reached its limit of {asked_secs:g} s"
        self._chunks = ChunkPairing()
        self._cutter = StepCutter()
        self._blocks: list[np.ndarray] = []
        self._whole = True
        self._beat_secs = time.monotonic()
        super().__init__(
            connection,
            host=host,
            audio_format="pcm",
            config=config,
            lead_steps=0,
            strips_spaces=False,
            limits=limits,
            greeting=protocol.Greeting(session=name),
            max_secs=min(context_secs, asked_secs),
        )

    @property
    def _waiting(self) -> int:
        return self._chunks.waiting

    def _send(self, pcm: np.ndarray) -> int:
        if self._sent >= self._max_steps:
            self._end(self._full_reason)
        self._inbox.accept(self._sent)
        self._out.put_nowait(omni_message.append(pcm, self._sent))
        if not self._chunks.waiting:
            self._progress_secs = self._clock.now_secs()
        index, answers = self._chunks.send(time.monotonic())
        self._sent += 1
        self._answer(answers)
        return index

    async def _read(self) -> str:
        while True:
            event, number = omni_message.parse(await self._connection.recv())
            self._alive_secs = self._clock.now_secs()
            match event:
                case omni_message.Sound(pcm):
                    self._take_chunk("")  # Of a server that sends no text for it.
                    was_whole = not self._cutter.pending_samples
                    self._blocks = self._cutter.push(pcm)
                    self._whole = was_whole and not self._cutter.pending_samples
                case omni_message.Spoken(text):
                    self._take_chunk(text)
                    if number is not None:
                        self._out.put_nowait(omni_message.acknowledge(number))
                case omni_message.Failure(code) if code not in HARMLESS:
                    return f"{self._host} reports: {told(event)}"
                case omni_message.Ended(reason):
                    return f"{self._host} ended the session: {in_one_line(reason[:MAX_TOLD])}"

    def _take_chunk(self, text: str) -> None:
        blocks, self._blocks = self._blocks, []
        if blocks or text:
            self._answer(self._chunks.take(blocks, text, whole=self._whole))

    def _answer(self, answers: list[Answer]) -> None:
        for index, sent_secs, pcm, piece in answers:
            token = TEXT_PADDING if piece is None else UNKNOWN_TOKEN
            timing = StepTiming(max(0.0, time.monotonic() - sent_secs), 0.0)
            self._deliver(Step(index, pcm, token, piece, timing))
            if index + 1 >= self._max_steps:
                self._end(self._full_reason)

    async def _ping(self) -> None:
        if time.monotonic() - self._beat_secs >= HEARTBEAT_SECS:
            self._beat_secs = time.monotonic()
            self._out.put_nowait(omni_message.HEARTBEAT)
        await super()._ping()

    async def _leave(self) -> None:
        """Tell the server, so that the place is free once it has answered."""
        with contextlib.suppress(ConnectionClosed, protocol.WireError):
            await self._connection.send(omni_message.CLOSE)
            while not isinstance(
                omni_message.parse(await self._connection.recv())[0], omni_message.Ended
            ):
                pass


def told(failure: omni_message.Failure) -> str:
    """What a server says of a failure, as it may go into a log."""
    code = f" ({failure.code[:64]})" if failure.code else ""
    return in_one_line(failure.message[:MAX_TOLD] + code)
