"""One caller: a socket on one side, a session on the other."""

import asyncio
import socket as sockets
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web
from loguru import logger

from pipecat_duplex import protocol
from pipecat_duplex.conversation.cutter import StepCutter
from pipecat_duplex.protocol.opus import OpusDecoder, OpusEncoder
from pipecat_duplex.server.call_log import CallDelays, CallRecord
from pipecat_duplex.server.limit import RateLimit
from pipecat_duplex.server.metrics import Metrics
from pipecat_duplex.server.settings import ServerSettings
from pipecat_duplex.session import (
    SAMPLE_RATE_HZ,
    STEP_SECS,
    CannotSay,
    DuplexError,
    DuplexSession,
    InvalidAudio,
    SessionEnded,
    Step,
)
from pipecat_duplex.session.history import History
from pipecat_duplex.session.saying import MAX_SAY_BYTES, Saying, check_words, give

# A caller who stops reading is noticed when the buffers on the way are full: keep ours short.
SEND_BUFFER_BYTES = 64 * 1024
WRITE_BUFFER_BYTES = 16 * 1024

# What is read at once is parsed at once, and holds up everybody else: thousands of messages, if
# somebody wants to.
RECEIVE_BUFFER_BYTES = 32 * 1024

FLOOD_CLOSE_SECS = 0.05
"""How long the goodbye to somebody may take whose messages come too fast to be read to the end."""

MAX_HISTORY_BYTES = 2 * 1024 * 1024
"""Longest history that a caller may send."""

BURST_SECS = 4.0
"""Messages and bytes are counted over about this time."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a call ended.

    Parameters:
        kind: One word for the metrics.
        code: Close code of the WebSocket.
        reason: In words for a person.
    """

    kind: str
    code: int
    reason: str


CLIENT_LEFT = Ending("client", WSCloseCode.OK, "the caller hung up")
CLIENT_LOST = Ending("lost", WSCloseCode.ABNORMAL_CLOSURE, "the connection was lost")
DEAF = Ending("deaf", WSCloseCode.POLICY_VIOLATION, "the caller does not read what it is sent")


class Call:
    """Carries audio from a socket to a session and back, until one of them ends."""

    def __init__(
        self,
        socket: web.WebSocketResponse,
        request: web.Request,
        session: DuplexSession,
        asked: protocol.SessionRequest,
        settings: ServerSettings,
        metrics: Metrics,
    ):
        """Initialize.

        Args:
            socket: The socket, open.
            request: The request that opened it.
            session: The session, open.
            asked: What the caller asked for.
            settings: What the server allows.
            metrics: Where steps are counted.
        """
        self._socket = socket
        self._request = request
        self._session = session
        self._asked = asked
        self._settings = settings
        self._metrics = metrics
        self._stopped: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        now_secs = time.monotonic()
        self._started_secs = self._audio_at_secs = self._pong_at_secs = now_secs
        rate = settings.messages_per_sec
        self._messages = RateLimit(rate, BURST_SECS * rate)
        self._bytes = RateLimit(settings.bytes_per_sec, BURST_SECS * settings.bytes_per_sec)
        self._audio = RateLimit(SAMPLE_RATE_HZ, settings.ahead_secs * SAMPLE_RATE_HZ)
        self._uses_opus = asked.audio_format == "opus"
        # Of this call only: no state of a codec outlives it.
        self._decoder = OpusDecoder() if self._uses_opus else None
        self._encoder = OpusEncoder() if self._uses_opus else None
        self._cutter = StepCutter()
        self._delays = CallDelays()
        self._requests: asyncio.Queue[protocol.Say | protocol.Hold | bytes] = asyncio.Queue()
        self._history = bytearray()
        self._greeted = False
        self._ends_at_secs: float | None = None

    @property
    def moves(self) -> bool:
        """Whether the caller would rather go elsewhere at once than stay while we shut down."""
        return self._asked.moves

    @property
    def lag_secs(self) -> float:
        """Delay of the last step beyond a step's length."""
        return max(0.0, self._delays.last_secs - STEP_SECS)

    async def warn(self, secs_left: float) -> None:
        """Tell the caller that the call will end.

        Args:
            secs_left: How long it may still go on.
        """
        self._ends_at_secs = time.monotonic() + secs_left
        if not self._greeted:
            return  # The greeting says so.
        try:
            await self._send_message(self._greeting().to_metadata())
        except (TimeoutError, ConnectionError):
            pass  # The call finds out by itself.

    def stop(self, ending: Ending) -> None:
        """End the call from outside."""
        if not self._stopped.done():
            self._stopped.set_result(ending)

    async def run(self) -> CallRecord:
        """Carry audio until the caller, the session or the server ends the call.

        Returns:
            What is to be said about it.
        """
        self._shorten_buffers()
        pumps = [
            asyncio.ensure_future(pump)
            for pump in (
                self._receive(),
                self._send(),
                self._watch(),
                self._answer_requests(),
                self._stopped,
            )
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            ending = _first_ending(pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        # The slot is free before the goodbyes, which can take a moment.
        await self._session.close()
        await self._close(ending)
        return self._record(ending)

    #
    # from the caller
    #

    async def _receive(self) -> Ending:
        while True:
            message = await self._socket.receive()
            if message.type == WSMsgType.BINARY:
                ending = self._take(message.data)
            elif message.type == WSMsgType.PING:
                await self._socket.pong(message.data)
                ending = self._check_rate(len(message.data))
            elif message.type == WSMsgType.PONG:
                self._pong_at_secs = time.monotonic()
                ending = self._check_rate(len(message.data))
            else:
                ending = self._explain_end(message)
            if ending is not None:
                return ending

    def _take(self, data: bytes) -> Ending | None:
        too_fast = self._check_rate(len(data))
        if too_fast:
            return too_fast
        try:
            message = protocol.parse(data)
            if isinstance(message, protocol.Audio):
                self._take_opus(message.data)
            elif isinstance(message, protocol.Pcm):
                self._take_pcm(message.pcm)
            elif isinstance(message, protocol.Say | protocol.Hold):
                self._requests.put_nowait(message)
            elif isinstance(message, protocol.HistoryPiece):
                self._take_history(message.data)
        except protocol.TooLong as e:
            return Ending("protocol", WSCloseCode.MESSAGE_TOO_BIG, str(e))
        except (protocol.WireError, InvalidAudio) as e:
            return Ending("protocol", WSCloseCode.INVALID_TEXT, str(e))
        except SessionEnded:
            return None  # The steps that are still on their way come first, then the reason.
        except _TooFast:
            return Ending(
                "rate",
                WSCloseCode.POLICY_VIOLATION,
                f"audio runs more than {self._settings.ahead_secs:g} s ahead of the clock",
            )
        return None

    def _take_opus(self, data: bytes) -> None:
        if self._decoder is None:
            raise protocol.WireError("audio in Opus, where raw audio was agreed on")
        # Minutes of Opus silence fit into a small message: what is too much is not decoded.
        room = max(0, int(self._audio.room(time.monotonic()))) + SAMPLE_RATE_HZ
        pcm = self._decoder.decode(data, max_samples=room)
        if not len(pcm):
            return
        self._count_audio(len(pcm))
        for step in self._cutter.push(pcm):
            self._session.send(step)

    def _take_pcm(self, pcm: np.ndarray) -> None:
        if self._uses_opus:
            raise protocol.WireError("raw audio, which was not agreed on: ask for format=pcm")
        self._count_audio(len(pcm))
        self._session.send(pcm)

    def _take_history(self, piece: bytes) -> None:
        if piece:
            self._history += piece
            if len(self._history) > MAX_HISTORY_BYTES:
                raise protocol.WireError(f"a history of more than {MAX_HISTORY_BYTES} bytes")
        else:
            self._requests.put_nowait(bytes(self._history))
            self._history.clear()

    async def _answer_requests(self) -> Ending:
        """Pass on what the caller asks of the session, in its order."""
        while True:
            request = await self._requests.get()
            try:
                if isinstance(request, bytes):
                    answer = await self._restore(request)
                elif isinstance(request, protocol.Hold):
                    answer = await self._session.hold(request.held)
                else:
                    answer = await self._say(request)
            except SessionEnded:
                continue  # The reason comes after the steps that are still on their way.
            self._audio_at_secs = time.monotonic()
            try:
                if answer is not None:
                    await self._send_message(answer)
            except TimeoutError:
                return DEAF
            except ConnectionError:
                return CLIENT_LOST

    async def _say(self, say: protocol.Say) -> protocol.SayAnswer | None:
        if say.text is None:
            await self._session.hush()
            return None
        try:
            check_words(say.text)
            if say.utterance_id is not None:
                await self._session.say_more(say.utterance_id, say.text, more=say.more)
                return None
            saying = Saying(say.text, more=say.more)
            utterance_id = await give(self._session, saying, cut_in=say.cut_in)
        except CannotSay as e:
            return protocol.SayAnswer(say.request, error=str(e))
        return protocol.SayAnswer(say.request, utterance_id)

    async def _restore(self, data: bytes) -> protocol.HistoryPiece:
        try:
            history = await asyncio.to_thread(History.from_bytes, data)
            await self._session.restore(history)
        except SessionEnded:
            raise
        except DuplexError as e:
            return protocol.HistoryPiece(protocol.shorten(str(e)).encode())
        return protocol.HistoryPiece(b"")

    def _count_audio(self, samples: int) -> None:
        self._audio_at_secs = time.monotonic()
        if not self._audio.take(samples, self._audio_at_secs):
            raise _TooFast

    def _check_rate(self, size: int) -> Ending | None:
        now_secs = time.monotonic()
        if self._messages.take(1, now_secs) and self._bytes.take(size, now_secs):
            return None
        return Ending("rate", WSCloseCode.POLICY_VIOLATION, "too many messages, or too long ones")

    def _explain_end(self, message: WSMessage) -> Ending:
        if message.type == WSMsgType.TEXT:
            reason = "a text message came where the protocol has binary ones"
            return Ending("protocol", WSCloseCode.UNSUPPORTED_DATA, reason)
        if message.type == WSMsgType.ERROR:
            code = self._socket.close_code or WSCloseCode.PROTOCOL_ERROR
            return Ending("protocol", code, f"the WebSocket broke: {message.data}")
        if message.type == WSMsgType.CLOSE and message.data != WSCloseCode.ABNORMAL_CLOSURE:
            return CLIENT_LEFT
        return CLIENT_LOST

    #
    # to the caller
    #

    async def _send(self) -> Ending:
        try:
            await self._greet()
            async for step in self._session.steps():
                await self._send_step(step)
        except TimeoutError:
            return DEAF
        except SessionEnded as e:
            return self._session_ending(e)
        except ConnectionError:
            return CLIENT_LOST
        return Ending("closed", WSCloseCode.GOING_AWAY, "the session was closed")

    def _session_ending(self, error: SessionEnded) -> Ending:
        max_secs = self._asked.config.max_secs
        if max_secs is not None and self._delays.steps * STEP_SECS > max_secs - 1e-6:
            return Ending("limit", WSCloseCode.OK, error.reason)
        return Ending("error", WSCloseCode.INTERNAL_ERROR, error.reason)

    async def _greet(self) -> None:
        greeting = [protocol.Handshake(), self._greeting().to_metadata()]
        # Simple clients take the first message for the handshake. Those who want raw audio must
        # know before the handshake whether they have it.
        for message in greeting if self._uses_opus else reversed(greeting):
            await self._send_message(message)
        self._greeted = True

    async def _send_step(self, step: Step) -> None:
        delay_secs = self._metrics.add_step(step.timing)
        self._delays.add(delay_secs)
        tokens = protocol.Tokens.of(step) if self._asked.tokens else []
        for note in (*protocol.SpeechNote.of(step), *tokens):
            await self._send_message(note)
        if self._encoder is None:
            await self._send_message(protocol.AgentStep(step))
            return
        # A word comes before its sound, so that nobody has to wait to see whether one follows.
        if step.text_piece is not None:
            await self._send_message(protocol.Text(step.text_piece.replace("▁", " ")))
        # The first step has no sound yet, and moshi.server sends none for it either.
        if step.index > 0:
            await self._send_message(protocol.Audio(self._encoder.encode(step.pcm)))

    async def _send_message(self, message: protocol.Message) -> None:
        async with asyncio.timeout(self._settings.send_secs):
            await self._socket.send_bytes(protocol.encode(message))

    def _greeting(self) -> protocol.Greeting:
        config, memory = self._session.config, self._session.memory
        secs_left = None
        if self._ends_at_secs is not None:
            secs_left = round(max(0.0, self._ends_at_secs - time.monotonic()), 1)
        can_restore = {protocol.RESTORE} if memory is not None else set()
        return protocol.Greeting(
            session=self._session.id,
            audio_format=self._asked.audio_format,
            features=frozenset({protocol.SAY, protocol.STREAM} | can_restore),
            memory=memory if self._asked.tokens else None,
            max_secs=config.max_secs,
            secs_left=secs_left,
            max_say_bytes=MAX_SAY_BYTES,
            ignored=tuple(self._asked.ignored),
            sampling=config.sampling(),
        )

    #
    # around it
    #

    async def _watch(self) -> Ending:
        """End the call when the caller is gone, deaf or asleep."""
        settings = self._settings
        pinged_secs = time.monotonic()
        interval_secs = min(1.0, settings.ping_secs, settings.idle_secs / 4)
        while True:
            await asyncio.sleep(interval_secs)
            now_secs = time.monotonic()
            if now_secs - self._pong_at_secs > settings.dead_secs:
                return DEAF
            if now_secs - self._audio_at_secs > settings.idle_secs:
                reason = f"no audio came for {settings.idle_secs:g} s"
                return Ending("idle", WSCloseCode.POLICY_VIOLATION, reason)
            if now_secs - pinged_secs >= settings.ping_secs:
                pinged_secs = now_secs
                try:
                    async with asyncio.timeout(settings.send_secs):
                        await self._socket.ping()
                except TimeoutError:
                    return DEAF
                except ConnectionError:
                    return CLIENT_LOST

    async def _close(self, ending: Ending) -> None:
        """Say why, and close; a caller who does not read is cut off."""
        secs = FLOOD_CLOSE_SECS if ending.kind == "rate" else 2 * self._settings.close_secs
        try:
            async with asyncio.timeout(secs):
                if ending.code not in (WSCloseCode.OK, WSCloseCode.ABNORMAL_CLOSURE):
                    if not self._socket.closed and ending is not DEAF:
                        await self._send_message(protocol.Error(ending.reason))
                if ending is not DEAF:
                    await self._socket.close(code=ending.code, message=_close_text(ending.reason))
        except (TimeoutError, ConnectionError, RuntimeError):
            pass
        transport = self._request.transport
        if transport is not None and (ending is DEAF or not self._socket.closed):
            transport.abort()

    def _shorten_buffers(self) -> None:
        transport = self._request.transport
        if transport is None:
            return
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, SEND_BUFFER_BYTES)
            connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, RECEIVE_BUFFER_BYTES)

    def _record(self, ending: Ending) -> CallRecord:
        delays = self._delays
        return CallRecord(
            session=self._session.id,
            peer=self._request.remote or "unknown",
            audio_format=self._asked.audio_format,
            secs=round(time.monotonic() - self._started_secs, 3),
            steps=delays.steps,
            late_steps=delays.late_steps,
            mean_delay_ms=round(1000 * delays.total_secs / max(1, delays.steps), 1),
            max_delay_ms=round(1000 * delays.max_secs, 1),
            ending=ending.kind,
            reason=" ".join(ending.reason.split()),
        )


class _TooFast(Exception):
    """Audio comes faster than it may."""


def _first_ending(pumps: Sequence[asyncio.Future[Ending]]) -> Ending:
    """The ending that counts: what the server or the session said, before what the socket did."""
    endings = []
    for pump in reversed(pumps):
        if not pump.done() or pump.cancelled():
            continue
        error = pump.exception()
        if error is None:
            endings.append(pump.result())
        elif isinstance(error, ConnectionError):
            endings.append(CLIENT_LOST)
        else:
            logger.opt(exception=error).error("A call failed")
            endings.append(Ending("error", WSCloseCode.INTERNAL_ERROR, "the server failed"))
    return min(endings, key=lambda ending: ending is CLIENT_LOST)


def _close_text(reason: str) -> bytes:
    """The reason as it fits into a close frame: 123 bytes of whole characters."""
    return reason.encode()[:123].decode(errors="ignore").encode()
