"""Servers and callers that several test files share."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import aiohttp
import numpy as np

from pipecat_duplex import protocol
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.server import DuplexServer, ServerSettings
from pipecat_duplex.session import STEP_SAMPLES, DuplexBackend, DuplexSession, Step

SILENCE = np.zeros(STEP_SAMPLES, np.float32)
FAST = Script(opening="one two three", opening_step=2, step_secs=0.001)


@contextlib.asynccontextmanager
async def serving(
    backend: DuplexBackend | None = None, *, slots: int = 2, **settings
) -> AsyncIterator[DuplexServer]:
    """A server on loopback, with a scripted agent unless told otherwise."""
    server = DuplexServer(
        backend or ScriptedBackend(FAST, slots=slots),
        slots=slots,
        settings=ServerSettings(**settings),
    )
    await server.start("127.0.0.1", 0)
    try:
        yield server
    finally:
        await server.stop()


def chat_url(server: DuplexServer, **query) -> str:
    parameters = "&".join(f"{name}={value}" for name, value in query.items())
    return f"http://127.0.0.1:{server.port}/api/chat?{parameters}"


@contextlib.asynccontextmanager
async def calling(
    server: DuplexServer, *, headers: dict | None = None, **query
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A bare socket to the server: what is sent and read is up to the test."""
    async with aiohttp.ClientSession() as http:
        async with http.ws_connect(chat_url(server, **query), headers=headers) as socket:
            yield socket


async def read_until(socket: aiohttp.ClientWebSocketResponse, kind: type, count: int = 1) -> list:
    """Read messages until some of a kind have come."""
    found: list = []
    while len(found) < count:
        message = await asyncio.wait_for(socket.receive(), 10)
        assert message.type == aiohttp.WSMsgType.BINARY, message
        parsed = protocol.parse(message.data)
        if isinstance(parsed, kind):
            found.append(parsed)
    return found


async def read_to_end(socket: aiohttp.ClientWebSocketResponse) -> list:
    """Read messages until the server closes."""
    found: list = []
    while True:
        message = await asyncio.wait_for(socket.receive(), 10)
        if message.type != aiohttp.WSMsgType.BINARY:
            return found
        found.append(protocol.parse(message.data))


async def wait_until(condition, secs: float = 10) -> None:
    """Wait for something that happens elsewhere."""
    end_secs = time.monotonic() + secs
    while not condition():
        assert time.monotonic() < end_secs, "it did not happen"
        await asyncio.sleep(0.01)


async def take(session: DuplexSession, count: int) -> list[Step]:
    """Take steps, as many as there should be."""
    steps: list[Step] = []
    async with asyncio.timeout(30):
        async for step in session.steps():
            steps.append(step)
            if len(steps) == count:
                break
    return steps


async def converse(session: DuplexSession, audio, pause_secs: float = 0.0) -> list[Step]:
    """Send audio and take the answers."""

    async def feed() -> None:
        for frame in audio:
            session.send(frame)
            await asyncio.sleep(pause_secs)

    feeding = asyncio.create_task(feed())
    try:
        return await take(session, len(audio))
    finally:
        await feeding


def text_of(steps: list[Step]) -> str:
    return "".join(step.text_piece or "" for step in steps).replace("▁", " ").strip()
