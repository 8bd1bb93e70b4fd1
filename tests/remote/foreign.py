"""Servers as other people run them, built from what their sources do, for tests on one machine.

Each answers a frame with the caller's own audio, ``lead_steps`` frames late, as the acoustic delay
makes the models answer: so a test can see which frame a block of audio belongs to.

- The Rust backend (``moshi-backend``, ``stream_both.rs``): metadata before a handshake of nine
  bytes; the first two frames give no audio; packets of 40 ms, a message each; text after the audio,
  and words behind padding without their space; a WebSocket ping is taken for a message, and one of
  an unknown kind ends the session.
- PersonaPlex (``server.py``): every frame gives audio, since the prompts took the first step;
  ``voice_prompt`` and ``text_prompt`` must be there, and ``seed`` breaks it; the handshake of one
  byte comes when the prompts have been read; one caller at a time, the next waits for a handshake;
  text before the audio.
- ``moshi.server``: as PersonaPlex, without prompts, text after the audio.
"""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from aiohttp import WSMsgType, web

from pipecat_duplex.protocol.opus import OpusDecoder, OpusEncoder
from pipecat_duplex.session import STEP_SAMPLES


@dataclass
class Manners:
    """How a server behaves.

    Parameters:
        handshake: Its first bytes when it is ready.
        metadata: Sent before the handshake.
        handshake_secs: Time from connecting to being ready.
        needs_prompts: Raises where PersonaPlex does.
        one_at_a_time: A second caller waits for the first.
        lead_steps: Frames at the beginning without audio.
        packet_samples: Length of an audio message.
        text_first: Whether a word comes before its audio.
        words: A text for each frame.
        lost: Frames that get no answer, whatever the reason.
        bunch: Blocks that are held back until there are so many.
        takes_pings: Whether WebSocket pings are taken for messages.
    """

    handshake: bytes = b"\x00"
    metadata: bytes = b""
    handshake_secs: float = 0.0
    needs_prompts: bool = False
    one_at_a_time: bool = True
    lead_steps: int = 1
    packet_samples: int = STEP_SAMPLES
    text_first: bool = False
    words: dict[int, str] = field(default_factory=dict)
    lost: Sequence[int] = ()
    bunch: int = 1
    takes_pings: bool = False


def moshi_server(**changes) -> Manners:
    return Manners(**changes)


def rust_backend(**changes) -> Manners:
    metadata = {"text_temperature": 0.8, "text_topk": 250, "instance_name": "moshi"}
    manners = {
        "handshake": bytes(9),
        "metadata": b"\x04" + json.dumps(metadata).encode(),
        "one_at_a_time": False,
        "lead_steps": 2,
        "takes_pings": True,
        "packet_samples": 960,
    }
    return Manners(**(manners | changes))


def personaplex(**changes) -> Manners:
    manners = {"needs_prompts": True, "handshake_secs": 0.3, "text_first": True, "lead_steps": 0}
    return Manners(**(manners | changes))


class ForeignServer:
    """Serves ``/api/chat`` with the manners of somebody else's server."""

    def __init__(self, manners: Manners):
        self.manners = manners
        self.queries: list[dict[str, str]] = []
        self.frames = 0
        self.unknown_messages = 0
        self._lock = asyncio.Lock()

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(autoping=False)
        await socket.prepare(request)
        self.queries.append(dict(request.query))
        if self.manners.needs_prompts:
            for name in ("voice_prompt", "text_prompt"):
                request.query[name]
            if "seed" in request.query:
                request["seed"]
        if self.manners.one_at_a_time:
            async with self._lock:
                await self._converse(socket)
        else:
            await self._converse(socket)
        return socket

    async def _converse(self, socket: web.WebSocketResponse) -> None:
        manners = self.manners
        await asyncio.sleep(manners.handshake_secs)
        if manners.metadata:
            await socket.send_bytes(manners.metadata)
        await socket.send_bytes(manners.handshake)
        voice = _Voice(manners, socket)
        decoder = OpusDecoder()
        pending = np.zeros(0, np.float32)
        async for message in socket:
            if message.type == WSMsgType.PING:
                if manners.takes_pings and message.data[:1] not in (b"\x01", b"\x03", b"\x06"):
                    self.unknown_messages += 1
                    return
                await socket.pong(message.data)
            if message.type != WSMsgType.BINARY or message.data[:1] != b"\x01":
                continue
            pending = np.concatenate([pending, decoder.decode(message.data[1:])])
            while len(pending) >= STEP_SAMPLES:
                frame, pending = pending[:STEP_SAMPLES], pending[STEP_SAMPLES:]
                self.frames += 1
                await voice.answer(frame)


class _Voice:
    """Answers frames."""

    def __init__(self, manners: Manners, socket: web.WebSocketResponse):
        self._manners = manners
        self._socket = socket
        self._encoder = OpusEncoder()
        self._index = 0
        self._held: list[np.ndarray] = []

    async def answer(self, frame: np.ndarray) -> None:
        index, self._index = self._index, self._index + 1
        if index in self._manners.lost:
            return
        word = self._manners.words.get(index)
        if word and self._manners.text_first:
            await self._socket.send_bytes(b"\x02" + word.encode())
        if index >= self._manners.lead_steps:
            self._held.append(frame)
        if len(self._held) >= self._manners.bunch:
            await self._send(np.concatenate(self._held))
            self._held.clear()
        if word and not self._manners.text_first:
            await self._socket.send_bytes(b"\x02" + word.encode())

    async def _send(self, pcm: np.ndarray) -> None:
        for start in range(0, len(pcm), self._manners.packet_samples):
            packet = pcm[start : start + self._manners.packet_samples]
            await self._socket.send_bytes(b"\x01" + self._encoder.encode(packet))


@contextlib.asynccontextmanager
async def running(manners: Manners) -> AsyncIterator[tuple[ForeignServer, str]]:
    """A server on loopback, with its URL."""
    server = ForeignServer(manners)
    app = web.Application()
    app.router.add_get("/api/chat", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield server, f"ws://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
