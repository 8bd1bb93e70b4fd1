"""One call on Twilio's Media Streams: its first messages, and the checks of all messages.

The protocol is Twilio's: text messages of JSON over a WebSocket. ``connected`` and ``start`` come
first; then ``media``, ``dtmf``, ``mark`` and at the end ``stop``.
"""

import asyncio
import base64
import binascii
import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from fastapi import WebSocket, WebSocketDisconnect
from loguru import logger
from starlette.websockets import WebSocketState

from pipecat_duplex.session import DuplexError
from pipecat_duplex.telephony.flow import Allowance
from pipecat_duplex.telephony.line import LINE_RATE_HZ

UNSUPPORTED_DATA, POLICY_VIOLATION, TOO_BIG = 1003, 1008, 1009
"""WebSocket close codes (RFC 6455, section 7.4.1)."""

MAX_MESSAGE_CHARS = 64 * 1024
MAX_CHUNK_SECS = 1.0
START_TIMEOUT_SECS = 5.0
MAX_TIMESTAMP_MS = 10**12
"""Thirty years: later timestamps are refused."""

MAX_PARAMETERS, MAX_PARAMETER_CHARS = 64, 4096

# Twilio sends 50 messages a second, each with 20 ms of audio; a person presses few keys. What a
# line held back may come at once.
MESSAGES = {"per_sec": 200, "at_once": 4000}
AUDIO_SECS = {"per_sec": 1.05, "at_once": 30}
KEYS = {"per_sec": 5, "at_once": 50}

# Twilio sends `connected` and then `start`; a few unknown messages between are borne.
_MAX_MESSAGES_TO_START = 5
# Twilio's are two letters and 32 hexadecimal digits. They go into addresses and logs.
_SID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class StreamRefused(DuplexError):
    """A peer does not speak Media Streams, or speaks it wrongly.

    Parameters:
        code: The WebSocket close code it is told.
        reason: Why, in words.
    """

    def __init__(self, code: int, reason: str):
        """Initialize the error.

        Args:
            code: The WebSocket close code.
            reason: Why, in words.
        """
        super().__init__(reason)
        self.code = code
        self.reason = reason


class MediaStream:
    """A call whose ``start`` message has come.

    Parameters:
        websocket: The connection.
        stream_sid: Twilio's name of the stream.
        call_sid: Twilio's name of the call.
        account_sid: The account that is called.
        parameters: What the TwiML gave along, by name.
    """

    def __init__(
        self,
        websocket: WebSocket,
        start: dict[str, Any],
        *,
        now_secs: Callable[[], float] = time.monotonic,
    ):
        """Initialize the stream; see :meth:`accept`.

        Args:
            websocket: The connection.
            start: The ``start`` object of the ``start`` message, checked.
            now_secs: The time, for tests.
        """
        self.websocket = websocket
        self.stream_sid: str = start["streamSid"]
        self.call_sid: str | None = start.get("callSid")
        self.account_sid: str | None = start.get("accountSid")
        self.parameters: dict[str, str] = start.get("customParameters") or {}
        self._now_secs = now_secs
        self._messages = Allowance(**MESSAGES)
        self._audio_secs = Allowance(**AUDIO_SECS)
        self._keys = Allowance(**KEYS)
        self._over = False

    @classmethod
    async def accept(
        cls, websocket: WebSocket, *, timeout_secs: float = START_TIMEOUT_SECS
    ) -> "MediaStream":
        """Accept a connection and read its messages as far as ``start``.

        Args:
            websocket: The connection, not accepted yet.
            timeout_secs: How long the peer may take.

        Returns:
            The call.

        Raises:
            StreamRefused: The peer is no caller. It has been told, the connection is closed, and
                the reason is logged.
        """
        await websocket.accept()
        try:
            start = await asyncio.wait_for(_read_start(websocket), timeout_secs)
        except TimeoutError:
            refusal = StreamRefused(POLICY_VIOLATION, f"no start message in {timeout_secs:g} s")
        except StreamRefused as e:
            refusal = e
        else:
            return cls(websocket, start)
        await _close(websocket, refusal)
        raise refusal

    def parse(self, data: str | bytes) -> dict[str, Any] | None:
        """Check a message of the call.

        Args:
            data: The message.

        Returns:
            It, with a ``media`` payload decoded to bytes. ``None`` if the call is over.

        Raises:
            StreamRefused: Twilio would not send this message, or not so many.
        """
        if self._over:
            return None
        now_secs = self._now_secs()
        if not self._messages.take(1, now_secs):
            raise StreamRefused(POLICY_VIOLATION, "more messages than a call has")
        message = _parse(data)
        stream_sid = message.get("streamSid", self.stream_sid)
        if stream_sid != self.stream_sid:
            raise StreamRefused(
                POLICY_VIOLATION, f"streamSid {_short(stream_sid)} is not this stream's"
            )
        if message["event"] == "media":
            message["media"] = _check_media(message.get("media"))
            if not self._audio_secs.take(len(message["media"]["payload"]) / LINE_RATE_HZ, now_secs):
                raise StreamRefused(POLICY_VIOLATION, "audio that comes faster than it is spoken")
        elif message["event"] == "dtmf":
            message["dtmf"] = _check_dtmf(message.get("dtmf"))
            if not self._keys.take(1, now_secs):
                raise StreamRefused(POLICY_VIOLATION, "more keys than a person can press")
        return message

    async def refuse(self, refusal: StreamRefused) -> None:
        """End the call because of what the peer sent, and say why.

        Args:
            refusal: What it did.
        """
        self._over = True
        await _close(self.websocket, refusal, self.call_sid)

    async def close(self) -> None:
        """End the stream in good order."""
        self._over = True
        if self.websocket.application_state == WebSocketState.CONNECTED:
            with suppress(RuntimeError, WebSocketDisconnect):  # The peer may be gone already.
                await self.websocket.close()


async def _read_start(websocket: WebSocket) -> dict[str, Any]:
    for _ in range(_MAX_MESSAGES_TO_START):
        received = await websocket.receive()
        if received["type"] == "websocket.disconnect":
            raise StreamRefused(POLICY_VIOLATION, "the peer hung up before its start message")
        data = received.get("text")
        message = _parse(received.get("bytes") or b"" if data is None else data)
        if message["event"] == "start":
            return _check_start(message.get("start"))
        if message["event"] in ("media", "dtmf", "stop"):
            raise StreamRefused(POLICY_VIOLATION, f"{message['event']} before start")
    raise StreamRefused(POLICY_VIOLATION, "no start message")


def _parse(data: str | bytes) -> dict[str, Any]:
    if isinstance(data, bytes):
        raise StreamRefused(UNSUPPORTED_DATA, "binary messages are not part of Media Streams")
    if len(data) > MAX_MESSAGE_CHARS:
        raise StreamRefused(TOO_BIG, f"a message of {len(data)} characters")
    try:
        message = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise StreamRefused(POLICY_VIOLATION, "a message that is not JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("event"), str):
        raise StreamRefused(POLICY_VIOLATION, "a message without event")
    return message


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_start(start: Any) -> dict[str, Any]:
    if not isinstance(start, dict) or not isinstance(start.get("streamSid"), str):
        raise StreamRefused(POLICY_VIOLATION, "a start message without streamSid")
    for name in ("streamSid", "callSid", "accountSid"):
        sid = start.get(name)
        if sid is not None and not (isinstance(sid, str) and _SID.fullmatch(sid)):
            raise StreamRefused(POLICY_VIOLATION, f"{name} {_short(sid)} is no name of Twilio's")
    _check_parameters(start.get("customParameters"))
    form = start.get("mediaFormat")
    if not isinstance(form, dict):
        raise StreamRefused(POLICY_VIOLATION, "a start message without mediaFormat")
    found = tuple(form.get(name) for name in ("encoding", "sampleRate", "channels"))
    if found != ("audio/x-mulaw", LINE_RATE_HZ, 1):
        raise StreamRefused(
            UNSUPPORTED_DATA,
            f"the codec {_short(found)}; only audio/x-mulaw, 8000 Hz, 1 channel is spoken here",
        )
    return start


def _check_parameters(parameters: Any) -> None:
    if parameters is None:
        return
    if not isinstance(parameters, dict) or len(parameters) > MAX_PARAMETERS:
        raise StreamRefused(POLICY_VIOLATION, "customParameters that are no parameters of TwiML")
    for name, value in parameters.items():
        if not isinstance(value, str) or len(name) + len(value) > MAX_PARAMETER_CHARS:
            raise StreamRefused(
                POLICY_VIOLATION, f"the parameter {_short(name)} is no text of TwiML"
            )


def _check_media(media: Any) -> dict[str, Any]:
    if not isinstance(media, dict) or not isinstance(media.get("payload"), str):
        raise StreamRefused(POLICY_VIOLATION, "a media message without payload")
    try:
        payload = base64.b64decode(media["payload"], validate=True)
    except (binascii.Error, ValueError):
        raise StreamRefused(POLICY_VIOLATION, "a media message that cannot be read") from None
    if len(payload) > MAX_CHUNK_SECS * LINE_RATE_HZ:
        raise StreamRefused(TOO_BIG, f"{len(payload)} bytes of audio in one message")
    return media | {"payload": payload, "timestamp": _check_timestamp(media.get("timestamp"))}


def _check_timestamp(timestamp: Any) -> int | None:
    """Return milliseconds. Twilio writes them as text, others as a number."""
    if timestamp is None:
        return None
    if isinstance(timestamp, str) and len(timestamp) <= 20 and timestamp.isascii():
        timestamp = int(timestamp) if timestamp.isdigit() else None
    if not isinstance(timestamp, int) or isinstance(timestamp, bool):
        raise StreamRefused(POLICY_VIOLATION, "a media message that cannot be read: its timestamp")
    if not 0 <= timestamp <= MAX_TIMESTAMP_MS:
        raise StreamRefused(POLICY_VIOLATION, "a media message that cannot be read: its timestamp")
    return timestamp


def _check_dtmf(dtmf: Any) -> dict[str, Any]:
    if not isinstance(dtmf, dict) or not isinstance(dtmf.get("digit"), str):
        raise StreamRefused(POLICY_VIOLATION, "a dtmf message without digit")
    return dtmf


async def _close(websocket: WebSocket, refusal: StreamRefused, call_sid: str | None = None) -> None:
    peer = websocket.client.host if websocket.client else "an unknown peer"
    call = f", call {call_sid}" if call_sid else ""
    logger.warning(f"Media Stream from {peer}{call} refused: {refusal.reason}")
    if websocket.application_state == WebSocketState.CONNECTED:
        with suppress(RuntimeError, WebSocketDisconnect):  # The peer may be gone already.
            # A close frame holds 123 bytes of reason.
            reason = refusal.reason.encode(errors="replace")[:120].decode(errors="ignore")
            await websocket.close(refusal.code, reason)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
