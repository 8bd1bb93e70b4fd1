"""One caller: a socket on one side, a session on the other."""

import asyncio
import contextlib
import socket as sockets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web
from loguru import logger

from pipecat_duplex import protocol
from pipecat_duplex.protocol.opus import OpusEncoder
from pipecat_duplex.server.call_log import CallDelays, CallRecord
from pipecat_duplex.server.caller_audio import CallerAudio, TooFast, lag_beyond_step
from pipecat_duplex.server.connections import Connection, Meter
from pipecat_duplex.server.limit import RateLimit
from pipecat_duplex.server.metrics import Metrics
from pipecat_duplex.server.settings import ServerSettings
from pipecat_duplex.session import (
    STEP_SECS,
    CannotSay,
    DuplexError,
    DuplexSession,
    InvalidAudio,
    SessionEnded,
    Step,
)
from pipecat_duplex.session.fair_clock import FairClock
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

OVERTIME_SECS = 2.0
"""How much longer than its audio a session may take where the server has a limit."""

MAX_REQUESTS = 256
"""Words and histories that may wait for the session at a time."""

WATCH_SECS = 0.25

PING_PAYLOAD = protocol.encode(protocol.Ping()) + bytes(3)
"""Some clients take WebSocket pings for messages: this one is a ping in Moshi's protocol too."""


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
TOO_MUCH = Ending("rate", WSCloseCode.POLICY_VIOLATION, "too many messages, or too many bytes")
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
        clock: FairClock,
    ):
        """Initialize.

        Args:
            socket: The socket, open.
            request: The request that opened it.
            session: The session, open.
            asked: What the caller asked for.
            settings: What the server allows.
            metrics: Where steps are counted.
            clock: The time by which the caller has to be.
        """
        self._socket = socket
        self._request = request
        self._session = session
        self._asked = asked
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._stopped: asyncio.Future[Ending] = asyncio.get_running_loop().create_future()
        self._started_secs = time.monotonic()
        now_secs = clock.now_secs()
        self._began_secs = self._pong_at_secs = now_secs
        self._audio = CallerAudio(asked.audio_format, settings.ahead_secs, now_secs)
        self._encoder = OpusEncoder() if asked.audio_format == "opus" else None
        self._delays = CallDelays()
        self._requests: asyncio.Queue[protocol.Say | protocol.Hold | bytes] = asyncio.Queue()
        self._history = bytearray()
        self._known: np.ndarray | None = None
        self._followed = 0
        self._is_restoring = False
        self._greeted = False
        self._text_told = False
        self._ends_at_secs: float | None = None
        # When each of the messages that are being sent was begun.
        self._sending: dict[object, float] = {}

    @property
    def waiting_secs(self) -> float:
        """How long the oldest step without an answer has waited."""
        return self._audio.waiting_secs(self._clock.now_secs())

    @property
    def lag_secs(self) -> float:
        """Delay beyond a step's length: of the last step, or of one that has not come back."""
        return lag_beyond_step(max(self._delays.last_secs, self.waiting_secs))

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
        except ConnectionError:
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
        self._prepare_transport()
        pumps = [
            asyncio.ensure_future(pump)
            for pump in (
                self._receive(),
                self._send(),
                self._watch(),
                self._ping(),
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
            ending = None
            if message.type == WSMsgType.BINARY:
                ending = self._take(message.data)
            elif message.type == WSMsgType.TEXT:
                self._note_text()
            elif message.type == WSMsgType.PING:
                with self._timed():
                    await self._socket.pong(message.data)
            elif message.type == WSMsgType.PONG:
                self._pong_at_secs = self._clock.now_secs()
            else:
                ending = self._explain_end(message)
            if ending is not None:
                return ending

    def _note_text(self) -> None:
        """Ignore a text message, as moshi.server does, and say so once."""
        if not self._text_told:
            self._text_told = True
            logger.info(f"Session {self._session.id}: text messages are ignored; use binary ones")

    def _take(self, data: bytes) -> Ending | None:
        try:
            message = protocol.parse(data)
            if isinstance(message, protocol.Audio | protocol.Pcm):
                self._take_audio(message)
            elif isinstance(message, protocol.Tokens):
                self._take_tokens(message)
            elif isinstance(message, protocol.Say | protocol.Hold):
                self._put_request(message)
            elif isinstance(message, protocol.HistoryPiece):
                self._take_history(message.data)
        except protocol.TooLong as e:
            return Ending("protocol", WSCloseCode.MESSAGE_TOO_BIG, str(e))
        except (protocol.WireError, InvalidAudio) as e:
            return Ending("protocol", WSCloseCode.INVALID_TEXT, str(e))
        except SessionEnded:
            return None  # The steps that are still on their way come first, then the reason.
        except TooFast as e:
            return Ending("rate", WSCloseCode.POLICY_VIOLATION, str(e))
        except DuplexError as e:  # No tokens of this model, or not now.
            return Ending("protocol", WSCloseCode.INVALID_TEXT, str(e))
        return None

    def _take_audio(self, message: protocol.Audio | protocol.Pcm) -> None:
        now_secs = self._clock.now_secs()
        known, self._known = self._known, None
        for pcm in self._audio.take(message, now_secs):
            if known is None:
                self._session.send(pcm)
            else:
                self._followed = 1 + self._session.follow(pcm, known)
            self._audio.note_sent(now_secs)

    def _take_tokens(self, message: protocol.Tokens) -> None:
        """Keep the tokens of the step that comes next, which was taken elsewhere."""
        if self._encoder is not None:
            raise protocol.WireError("tokens of a step beside Opus: they go with raw audio")
        if not self._can_follow:
            raise protocol.WireError("tokens of a step, which this server has no use for")
        self._known = message.tokens

    @property
    def _can_follow(self) -> bool:
        """Whether the session takes steps that were taken elsewhere; not all backends' do."""
        return hasattr(self._session, "follow")

    def _take_history(self, piece: bytes) -> None:
        if piece:
            self._history += piece
            if len(self._history) > MAX_HISTORY_BYTES:
                raise protocol.WireError(f"a history of more than {MAX_HISTORY_BYTES} bytes")
            return
        if self._is_restoring:
            raise protocol.WireError("a history while another is being taken up")
        self._is_restoring = True
        self._put_request(bytes(self._history))
        self._history.clear()

    def _put_request(self, request: protocol.Say | protocol.Hold | bytes) -> None:
        if self._requests.qsize() >= MAX_REQUESTS:
            raise TooFast(f"{MAX_REQUESTS} requests wait for an answer already")
        self._requests.put_nowait(request)

    async def _answer_requests(self) -> Ending:
        """Pass on what the caller asks of the session, in its order."""
        while True:
            request = await self._requests.get()
            try:
                if isinstance(request, bytes):
                    answer = await self._restore(request)
                elif isinstance(request, protocol.Hold):
                    answer = await self._hold(request)
                else:
                    answer = await self._say(request)
            except SessionEnded:
                continue  # The reason comes after the steps that are still on their way.
            try:
                if answer is not None:
                    await self._send_message(answer)
            except ConnectionError:
                return CLIENT_LOST

    async def _hold(self, hold: protocol.Hold) -> None:
        try:
            await self._session.hold(hold.held)
        except CannotSay as e:
            logger.info(f"Session {self._session.id}: the model's own words are not kept back: {e}")

    async def _say(self, say: protocol.Say) -> protocol.SayAnswer | None:
        if say.text is None:
            await self._session.hush()
            return None
        try:
            check_words(say.text)
            if say.asks:
                can = await self._session.can_say(say.text)
                number = 0 if can else None
                return protocol.SayAnswer(say.request, number, can.reason, can.lacks)
            if say.utterance_id is not None:
                await self._session.say_more(say.utterance_id, say.text, more=say.more)
                return None
            saying = Saying(say.text, more=say.more)
            utterance_id = await give(self._session, saying, cut_in=say.cut_in)
        except CannotSay as e:
            return protocol.SayAnswer(say.request, error=str(e), lacks=e.lacks)
        return protocol.SayAnswer(say.request, utterance_id)

    async def _restore(self, data: bytes) -> protocol.HistoryPiece:
        try:
            history = await asyncio.to_thread(History.from_bytes, data)
            await self._session.restore(history)
        except SessionEnded:
            raise
        except DuplexError as e:
            return protocol.HistoryPiece(protocol.shorten(str(e)).encode())
        finally:
            self._is_restoring = False
        self._audio.debt.forgive(self._clock.now_secs())
        return protocol.HistoryPiece(b"")

    def _explain_end(self, message: WSMessage) -> Ending:
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
                self._audio.note_answered()
                await self._send_step(step)
        except SessionEnded as e:
            return self._session_ending(e)
        except ConnectionError:
            return CLIENT_LOST
        return Ending("closed", WSCloseCode.GOING_AWAY, "the session was closed")

    def _session_ending(self, error: SessionEnded) -> Ending:
        max_secs = self._asked.config.max_secs
        steps = self._delays.steps + self._followed
        if max_secs is not None and steps * STEP_SECS > max_secs - 1e-6:
            return Ending("limit", WSCloseCode.OK, error.reason)
        return Ending("error", WSCloseCode.INTERNAL_ERROR, error.reason)

    async def _greet(self) -> None:
        greeting = [protocol.Handshake(), self._greeting().to_metadata()]
        # Simple clients take the first message for the handshake. Those who want raw audio must
        # know before the handshake whether they have it.
        for message in reversed(greeting) if self._encoder is None else greeting:
            await self._send_message(message)
        self._greeted = True

    async def _send_step(self, step: Step) -> None:
        if step.index >= self._followed:  # Those before came faster than anybody speaks.
            self._delays.add(self._metrics.add_step(step.timing))
            self._metrics.add_heard(step)
        tokens = protocol.Tokens.of(step) if self._asked.tokens else []
        for note in (*protocol.SpeechNote.of(step), *tokens):
            await self._send_message(note)
        if self._encoder is None:
            for heard in protocol.Heard.of(step):
                await self._send_message(heard)
            await self._send_message(protocol.AgentStep(step))
            return
        # A word comes before its sound, so that nobody has to wait to see whether one follows.
        if step.text_piece is not None:
            await self._send_message(protocol.Text(step.text_piece.replace("▁", " ")))
        # The first step has no sound yet, and moshi.server sends none for it either.
        if step.index > 0:
            await self._send_message(protocol.Audio(self._encoder.encode(step.pcm)))

    async def _send_message(self, message: protocol.Message) -> None:
        with self._timed():
            await self._socket.send_bytes(protocol.encode(message))

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        """Let the watch know for how long something has been on its way out."""
        sending = object()
        self._sending[sending] = self._clock.now_secs()
        try:
            yield
        finally:
            del self._sending[sending]

    def _greeting(self) -> protocol.Greeting:
        config, memory = self._session.config, self._session.memory
        secs_left = None
        if self._ends_at_secs is not None:
            secs_left = round(max(0.0, self._ends_at_secs - time.monotonic()), 1)
        can_restore = {protocol.RESTORE} if memory is not None else set()
        if memory is not None and self._can_follow:
            can_restore.add(protocol.FOLLOW)
        # With Opus, steps have no numbers to which words could belong. Not all backends' can hear.
        delay_steps = getattr(self._session, "hearing_delay_steps", None)
        hears = self._encoder is None and delay_steps is not None
        can_hear = {protocol.HEAR} if hears else set()
        can_speak = {protocol.SAY, protocol.STREAM, protocol.CAN_SAY}
        return protocol.Greeting(
            session=self._session.id,
            audio_format=self._asked.audio_format,
            features=frozenset(can_speak | can_restore | can_hear),
            memory=memory if self._asked.tokens else None,
            max_secs=config.max_secs,
            secs_left=secs_left,
            max_say_bytes=MAX_SAY_BYTES,
            ignored=tuple(self._asked.ignored),
            sampling=config.sampling(),
            hearing_delay_steps=delay_steps if hears else None,
        )

    #
    # around it
    #

    async def _watch(self) -> Ending:
        """End the call when the caller is gone, deaf or asleep, or its time is over."""
        settings = self._settings
        limit_secs = settings.max_session_secs
        while True:
            await asyncio.sleep(WATCH_SECS)
            now_secs = self._clock.now_secs()
            if now_secs - self._pong_at_secs > settings.dead_secs:
                return DEAF
            if now_secs - min(self._sending.values(), default=now_secs) > settings.send_secs:
                return DEAF
            if self._is_restoring:
                self._audio.debt.forgive(now_secs)
            elif self._audio.debt.secs(now_secs) > settings.idle_secs:
                reason = (
                    f"no audio came for {settings.idle_secs:g} s, or not half as much as is due"
                )
                return Ending("idle", WSCloseCode.POLICY_VIOLATION, reason)
            if limit_secs is not None and now_secs - self._began_secs > limit_secs + OVERTIME_SECS:
                reason = f"the session reached the server's limit of {limit_secs:g} s"
                return Ending("limit", WSCloseCode.OK, reason)

    async def _ping(self) -> Ending:
        while True:
            await asyncio.sleep(self._settings.ping_secs)
            try:
                with self._timed():
                    await self._socket.ping(PING_PAYLOAD)
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

    def _prepare_transport(self) -> None:
        """Keep buffers short, and count what comes in below the WebSocket."""
        transport = self._request.transport
        if transport is None:
            return
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_SNDBUF, SEND_BUFFER_BYTES)
            connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        protocol_below = transport.get_protocol()
        if isinstance(protocol_below, Connection):
            protocol_below.begin_call()
        assert isinstance(protocol_below, asyncio.Protocol)
        rate, sizes = self._settings.messages_per_sec, self._settings.bytes_per_sec
        meter = Meter(
            protocol_below,
            frames=RateLimit(rate, BURST_SECS * rate),
            sizes=RateLimit(sizes, BURST_SECS * sizes),
            now_secs=time.monotonic,
            on_excess=lambda: self.stop(TOO_MUCH),
        )
        transport.set_protocol(meter)

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
