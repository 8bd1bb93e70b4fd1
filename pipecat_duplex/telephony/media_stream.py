"""One call on Twilio's Media Streams: its first messages, and what is refused.

The protocol is Twilio's: text messages of JSON over a WebSocket. ``connected`` and ``start`` come
first; then ``media``, ``dtmf``, ``mark`` and at the end ``stop``.
"""

import asyncio
import base64
import binascii
import json
from contextlib import suppress
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect
from loguru import logger
from starlette.websockets import WebSocketState

from pipecat_duplex.session import DuplexError
from pipecat_duplex.telephony.line import LINE_RATE_HZ

UNSUPPORTED_DATA, POLICY_VIOLATION, TOO_BIG = 1003, 1008, 1009
"""WebSocket close codes (RFC 6455, section 7.4.1)."""

MAX_MESSAGE_CHARS = 64 * 1024
MAX_CHUNK_SECS = 1.0
START_TIMEOUT_SECS = 5.0
# Twilio sends `connected` and then `start`; a few unknown messages between are borne.
_MAX_MESSAGES_TO_START = 5


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

    def __init__(self, websocket: WebSocket, start: dict[str, Any]):
        """Initialize the stream; see :meth:`accept`.

        Args:
            websocket: The connection.
            start: The ``start`` object of the ``start`` message, checked.
        """
        self.websocket = websocket
        self.stream_sid: str = start["streamSid"]
        self.call_sid: str | None = start.get("callSid")
        self.account_sid: str | None = start.get("accountSid")
        self.parameters: dict[str, str] = start.get("customParameters") or {}
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
            StreamRefused: The message is none that Twilio would send.
        """
        if self._over:
            return None
        message = _parse(data)
        stream_sid = message.get("streamSid", self.stream_sid)
        if stream_sid != self.stream_sid:
            raise StreamRefused(
                POLICY_VIOLATION, f"streamSid {_short(stream_sid)} is not this stream's"
            )
        if message["event"] == "media":
            message["media"] = _check_media(message.get("media"))
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
        message = _parse(received["bytes"] if data is None else data)
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
        message = json.loads(data)
    except (ValueError, RecursionError):
        raise StreamRefused(POLICY_VIOLATION, "a message that is not JSON") from None
    if not isinstance(message, dict) or not isinstance(message.get("event"), str):
        raise StreamRefused(POLICY_VIOLATION, "a message without event")
    return message


def _check_start(start: Any) -> dict[str, Any]:
    if not isinstance(start, dict) or not isinstance(start.get("streamSid"), str):
        raise StreamRefused(POLICY_VIOLATION, "a start message without streamSid")
    form = start.get("mediaFormat") or {}
    found = tuple(form.get(name) for name in ("encoding", "sampleRate", "channels"))
    if found != ("audio/x-mulaw", LINE_RATE_HZ, 1):
        raise StreamRefused(
            UNSUPPORTED_DATA,
            f"the codec {_short(found)}; only audio/x-mulaw, 8000 Hz, 1 channel is spoken here",
        )
    return start


def _check_media(media: Any) -> dict[str, Any]:
    if not isinstance(media, dict) or not isinstance(media.get("payload"), str):
        raise StreamRefused(POLICY_VIOLATION, "a media message without payload")
    try:
        payload = base64.b64decode(media["payload"], validate=True)
        timestamp_ms = None if media.get("timestamp") is None else int(media["timestamp"])
    except (binascii.Error, ValueError, TypeError):
        raise StreamRefused(POLICY_VIOLATION, "a media message that cannot be read") from None
    if len(payload) > MAX_CHUNK_SECS * LINE_RATE_HZ:
        raise StreamRefused(TOO_BIG, f"{len(payload)} bytes of audio in one message")
    return media | {"payload": payload, "timestamp": timestamp_ms}


async def _close(websocket: WebSocket, refusal: StreamRefused, call_sid: str | None = None) -> None:
    peer = websocket.client.host if websocket.client else "an unknown peer"
    call = f", call {call_sid}" if call_sid else ""
    logger.warning(f"Media Stream from {peer}{call} refused: {refusal.reason}")
    if websocket.application_state == WebSocketState.CONNECTED:
        with suppress(RuntimeError, WebSocketDisconnect):  # The peer may be gone already.
            # A close frame holds 123 bytes of reason.
            reason = refusal.reason.encode()[:120].decode(errors="ignore")
            await websocket.close(refusal.code, reason)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"
