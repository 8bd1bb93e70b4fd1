"""What the web app lets through: names, origins, and bodies of the size of an offer."""

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pipecat_duplex.server.access import is_allowed_origin, is_local_host

MAX_BODY_BYTES = 64 * 1024
"""Offers have 2 to 8 KiB."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; media-src 'self' blob: mediastream:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    # A page from the version before must not meet the app of this one.
    (b"cache-control", b"no-cache"),
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Guard:
    """An ASGI middleware around the app."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], *, local_only: bool):
        """Initialize.

        Args:
            app: The app.
            local_only: Whether it answers to names of this machine only.
        """
        self._app = app
        self._local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        problem = self._check(headers)
        body = None if problem else await _read_body(headers, receive)
        if problem or body is None:
            status, kind, reason = problem or (413, "offer", f"more than {MAX_BODY_BYTES} bytes")
            await _refuse(send_with_headers, status, kind, reason)
            return

        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_body() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, receive_body, send_with_headers)

    def _check(self, headers: dict[bytes, str]) -> tuple[int, str, str] | None:
        host = headers.get(b"host")
        if self._local_only and not is_local_host(host):
            return 403, "host", "this app answers to names of its own machine only"
        if not is_allowed_origin(headers.get(b"origin"), host or "", ()):
            return 403, "origin", "pages of other sites may not call this app"
        return None


async def _read_body(headers: dict[bytes, str], receive: Receive) -> bytes | None:
    """Return the body of a request; ``None`` if it is too long."""
    length = headers.get(b"content-length", "0")
    if not length.isascii() or not length.isdigit() or len(length) > 9:
        return None
    if int(length) > MAX_BODY_BYTES:
        return None
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return bytes(body)  # The visitor is gone.
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


async def _refuse(send: Send, status: int, kind: str, reason: str) -> None:
    body = json.dumps({"detail": {"reason": kind, "message": reason}}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
