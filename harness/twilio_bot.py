"""The Twilio bot behind a real socket, and requests signed as Twilio signs them."""

import asyncio
import base64
import hashlib
import hmac
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import uvicorn

from examples.twilio_bot import MAX_MESSAGE_BYTES, create_app
from pipecat_duplex import DuplexBackend

HOST = "bot.example.com"


@dataclass
class Bot:
    """A running bot: where its webhook and its WebSocket are on this machine."""

    http: str
    media: str


@asynccontextmanager
async def serving(backend: DuplexBackend, **app_args) -> AsyncIterator[Bot]:
    """Run the example's app as its main function would."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(host=HOST, backend=backend, **app_args),
                log_level="warning",
                ws_max_size=MAX_MESSAGE_BYTES,
                ws_per_message_deflate=False,
            )
        )
        task = asyncio.create_task(server.serve(sockets=[listener]))
        await until(lambda: server.started)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        try:
            yield Bot(f"http://{address}/", f"ws://{address}/media")
        finally:
            server.should_exit = True
            await task


async def until(condition: Callable[[], object], timeout_secs: float = 60) -> None:
    """Wait until something is true."""
    for _ in range(round(timeout_secs / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"not in {timeout_secs} s")


def sign(auth_token: str, url: str, form: dict[str, str] | None = None) -> dict[str, str]:
    """Return the header that Twilio would send."""
    text = url + "".join(name + form[name] for name in sorted(form)) if form else url
    digest = hmac.new(auth_token.encode(), text.encode(), hashlib.sha1).digest()
    return {"X-Twilio-Signature": base64.b64encode(digest).decode()}
