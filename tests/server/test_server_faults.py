"""Callers that break the rules, or just break: the others must not notice."""

import asyncio
import contextlib
import gc
import os
import socket as sockets
import time
from pathlib import Path

import aiohttp
import numpy as np
import pytest

from pipecat_duplex import protocol
from pipecat_duplex.remote import RemoteBackend
from pipecat_duplex.remote.session import RemoteSession
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.server.call import Call
from pipecat_duplex.session import STEP_SECS, SessionConfig
from tests.server.callers import (
    SILENCE,
    calling,
    chat_url,
    converse,
    read_to_end,
    read_until,
    serving,
    wait_until,
)

STEADY = Script(opening="one two three", opening_step=2, step_secs=0.002)


class Neighbour:
    """A caller who does nothing wrong, from before a fault until after it.

    Its steps must not become late. How long they take is measured in processor time of this
    process, in which the server runs too: what others do to it counts, a busy machine does not.
    """

    def __init__(self, server):
        self._backend = RemoteBackend(chat_url(server))
        self._stopping = False
        self._sent_secs: list[float] = []
        self.delays_secs: list[float] = []

    @property
    def steps(self) -> int:
        return len(self.delays_secs)

    async def __aenter__(self):
        self._session = await self._backend.open(SessionConfig())
        self._tasks = [asyncio.create_task(self._talk()), asyncio.create_task(self._listen())]
        return self

    async def _talk(self):
        while not self._stopping:
            self._sent_secs.append(time.process_time())
            self._session.send(SILENCE)
            await asyncio.sleep(0.01)

    async def _listen(self):
        async for step in self._session.steps():
            assert step.index == self.steps
            self.delays_secs.append(time.process_time() - self._sent_secs[step.index])

    @contextlib.contextmanager
    def unheard(self):
        """Leave out the time that the test itself takes to look at this process."""
        started_secs = time.process_time()
        yield
        spent_secs = time.process_time() - started_secs
        for index in range(self.steps, len(self._sent_secs)):
            self._sent_secs[index] += spent_secs

    async def __aexit__(self, *error):
        before = self.steps
        await wait_until(lambda: self.steps > before + 5 or any(t.done() for t in self._tasks))
        self._stopping = True
        talk, listen = self._tasks
        await talk
        await wait_until(lambda: self.steps == len(self._sent_secs) or listen.done())
        await self._backend.close()
        await asyncio.wait_for(listen, 10)
        late = sum(secs > STEP_SECS for secs in self.delays_secs)
        assert late <= max(1, 0.01 * self.steps), f"{late} of {self.steps} steps came late"


def faulty(slots: int = 2, script: Script = STEADY, **settings):
    return serving(ScriptedBackend(script, slots=slots), slots=slots, **settings)


async def end_of(socket) -> tuple[int | None, str]:
    """The close code, and the reason that came as a message."""
    messages = await read_to_end(socket)
    reasons = [message.reason for message in messages if isinstance(message, protocol.Error)]
    return socket.close_code, reasons[-1] if reasons else ""


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        (os.urandom(2 << 20), 1009, ""),
        (protocol.encode(protocol.Pcm(SILENCE))[:-100], 1007, "bytes"),
        (protocol.encode(protocol.Pcm(np.full_like(SILENCE, np.nan))), 1007, "NaN"),
        (protocol.encode(protocol.Audio(b"OggS")), 1007, "raw audio"),
        (protocol.encode(protocol.Metadata({}))[:-1], 1007, "JSON"),
    ],
    ids=["noise", "half a frame", "nan", "the other format", "half of JSON"],
)
async def test_what_does_not_belong_ends_the_call(message, code, reason):
    async with faulty() as server, Neighbour(server):
        async with calling(server, format="pcm") as socket:
            await read_until(socket, protocol.Handshake)
            await socket.send_bytes(message)
            ended, told = await end_of(socket)
        assert ended == code
        assert reason in told
        await wait_until(lambda: server.sessions_open == 1)
        assert server.metrics.ended["protocol"] == 1


async def test_noise_as_opus_ends_the_call():
    pytest.importorskip("sphn")
    async with faulty() as server, Neighbour(server):
        async with calling(server) as socket:
            await read_until(socket, protocol.Handshake)
            await socket.send_bytes(protocol.encode(protocol.Audio(os.urandom(1000))))
            assert await end_of(socket) == (1007, wire_error_of_noise(socket))
        await wait_until(lambda: server.sessions_open == 1)


def wire_error_of_noise(_socket):
    class Any(str):
        def __eq__(self, other):
            return "Ogg-Opus" in other

        __hash__ = str.__hash__

    return Any()


@pytest.mark.parametrize("message", [b"", b"\x63unknown", b"\x03\x00", b"\x06", b"\x02hi", b"\x00"])
async def test_what_may_be_ignored_is(message):
    async with faulty() as server:
        async with calling(server, format="pcm") as socket:
            await socket.send_bytes(message)
            await socket.send_bytes(protocol.encode(protocol.Pcm(SILENCE)))
            await read_until(socket, protocol.AgentStep)


async def test_audio_far_ahead_of_the_clock_ends_the_call():
    async with faulty(ahead_secs=2) as server, Neighbour(server):
        async with calling(server, format="pcm") as socket:
            for _ in range(40):
                await socket.send_bytes(protocol.encode(protocol.Pcm(SILENCE)))
            ended, reason = await end_of(socket)
        assert ended == 1008 and "ahead" in reason


async def test_minutes_of_audio_in_a_small_message_are_not_decoded():
    opus = pytest.importorskip("pipecat_duplex.protocol.opus")
    pytest.importorskip("sphn")
    encoder = opus.OpusEncoder()
    stream = b"".join(encoder.encode(SILENCE) for _ in range(600))  # 48 s of silence is small
    async with faulty(ahead_secs=5) as server, Neighbour(server):
        async with calling(server) as socket:
            for start in range(0, len(stream), 60_000):
                await socket.send_bytes(
                    protocol.encode(protocol.Audio(stream[start : start + 60_000]))
                )
            ended, _ = await end_of(socket)
        assert ended in (1007, 1008)


async def test_too_many_messages_end_the_call():
    async with faulty(messages_per_sec=50) as server, Neighbour(server):
        async with calling(server, format="pcm") as socket:
            with contextlib.suppress(ConnectionError):
                for _ in range(20_000):
                    await socket.send_bytes(b"\x06")
        await wait_until(lambda: server.sessions_open == 1)
        assert server.metrics.ended["rate"] == 1


async def test_a_caller_who_says_nothing_loses_the_slot():
    async with faulty(idle_secs=0.3) as server, Neighbour(server):
        async with calling(server, format="pcm") as socket:
            ended, reason = await end_of(socket)
        assert ended == 1008 and "no audio" in reason
        assert server.metrics.ended["idle"] == 1


async def connect_deaf(server, receive_buffer: int = 4096) -> sockets.socket:
    """Open a WebSocket by hand, with a small buffer, to read from or not."""
    connection = sockets.socket()
    connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, receive_buffer)
    connection.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, ("127.0.0.1", server.port))
    request = (
        "GET /api/chat?format=pcm HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n"
        "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    await loop.sock_sendall(connection, request.encode())
    return connection


def frame(message: bytes) -> bytes:
    """A masked WebSocket frame; a mask of zeros changes nothing."""
    return b"\x82\xfe" + len(message).to_bytes(2, "big") + bytes(4) + message


async def test_a_socket_that_stops_reading_is_closed():
    async with faulty(send_secs=0.3) as server, Neighbour(server):
        connection = await connect_deaf(server)
        loop = asyncio.get_running_loop()
        with pytest.raises(OSError):
            for _ in range(2000):
                await loop.sock_sendall(connection, frame(protocol.encode(protocol.Pcm(SILENCE))))
                await asyncio.sleep(0.005)
        connection.close()
        await wait_until(lambda: server.sessions_open == 1)
        assert server.metrics.ended["deaf"] == 1


async def test_a_caller_who_answers_no_ping_is_gone():
    """It neither sends nor reads: no buffer fills up, only the pings tell."""
    async with faulty(ping_secs=0.1, dead_secs=0.4) as server, Neighbour(server):
        connection = await connect_deaf(server)
        await wait_until(lambda: server.metrics.ended["deaf"] == 1)
        await wait_until(lambda: server.sessions_open == 1)
        connection.close()


async def test_a_connection_that_breaks_frees_its_slot():
    async with faulty() as server, Neighbour(server):
        for _ in range(5):
            async with aiohttp.ClientSession() as http:
                socket = await http.ws_connect(chat_url(server, format="pcm"))
                await read_until(socket, protocol.Handshake)
                await socket.send_bytes(protocol.encode(protocol.Pcm(SILENCE)))
                assert socket._conn is not None and socket._conn.transport is not None
                socket._conn.transport.abort()
            await wait_until(lambda: server.sessions_open == 1)
        assert server.metrics.ended["lost"] == 5


def count_things() -> int:
    gc.collect()
    return len(gc.get_objects())


def resident_mb() -> float:
    """Memory of this process; 0 where nobody tells."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
async def test_a_thousand_connects_and_disconnects():
    async with faulty(slots=20) as server, Neighbour(server) as neighbour:

        async def call(number: int) -> None:
            backend = RemoteBackend(chat_url(server))
            session = await backend.open(SessionConfig())
            if number % 2:
                await converse(session, [SILENCE] * (number % 4))
            await backend.close()

        for first in range(0, 990, 15):
            await asyncio.gather(*(call(first + n) for n in range(15)))
            if first == 90:
                await wait_until(lambda: server.sessions_open == 1)
                with neighbour.unheard():
                    tasks, things = len(asyncio.all_tasks()), count_things()
                    memory_mb = resident_mb()
        await wait_until(lambda: server.sessions_open == 1)
        assert server.metrics.sessions == 991
        assert server.metrics.ended["client"] == 990
        # Nothing of them is left behind.
        await wait_until(lambda: len(asyncio.all_tasks()) <= tasks)
        with neighbour.unheard():
            assert count_things() - things < 885  # less than one a call
            assert resident_mb() - memory_mb < 16
            kept = [thing for thing in gc.get_objects() if type(thing) in (Call, RemoteSession)]
        assert len(kept) == 2


async def test_a_step_that_raises_ends_its_session_only():
    class Moody(ScriptedBackend):
        async def open(self, config):
            session = await super().open(config)
            if config.seed == 13:

                async def steps(self=session):
                    raise RuntimeError("a bug in a session")
                    yield

                session.steps = steps
            return session

    async with serving(Moody(STEADY, slots=2), slots=2) as server, Neighbour(server):
        async with calling(server, format="pcm", text_seed=13) as socket:
            assert await end_of(socket) == (1011, "the server failed")
        await wait_until(lambda: server.sessions_open == 1)


async def test_text_messages_are_ignored_as_moshi_server_does():
    async with faulty() as server, calling(server, format="pcm") as socket:
        await read_until(socket, protocol.Handshake)
        for _ in range(3):
            await socket.send_str("hello")
        await socket.send_bytes(protocol.encode(protocol.Pcm(SILENCE)))
        assert await read_until(socket, protocol.AgentStep)


@pytest.mark.parametrize(
    "message", [protocol.encode(protocol.Pcm(SILENCE)), b'\x12{"request":1,"text":" "}', b"\x06"]
)
async def test_a_frame_now_and_then_holds_no_slot(message):
    async with faulty(idle_secs=0.6) as server, calling(server, format="pcm") as socket:

        async def hold():
            while not socket.closed:
                await socket.send_bytes(message)
                await asyncio.sleep(0.35)

        holding = asyncio.create_task(hold())
        code, reason = await end_of(socket)
        holding.cancel()
        assert code == 1008 and "audio" in reason


async def test_the_clock_limits_a_session_too(monkeypatch):
    monkeypatch.setattr("pipecat_duplex.server.call.OVERTIME_SECS", 0.2)
    async with faulty(max_session_secs=0.5) as server, calling(server, format="pcm") as socket:
        assert (await end_of(socket))[0] == 1000
        await wait_until(lambda: server.metrics.ended["limit"] == 1)


async def test_empty_fragments_are_counted():
    async with faulty(messages_per_sec=50) as server:
        connection = await connect_deaf(server, 65536)
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(connection, b"\x02\x80" + bytes(4))
            for _ in range(100):
                await loop.sock_sendall(connection, (b"\x00\x80" + bytes(4)) * 100)
                await asyncio.sleep(0.01)
        await wait_until(lambda: server.metrics.ended["rate"] == 1)
        connection.close()


async def test_bytes_of_a_message_that_never_ends_are_counted():
    async with faulty(bytes_per_sec=20_000) as server:
        connection = await connect_deaf(server, 65536)
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(
                connection, b"\x82\xff" + (1 << 19).to_bytes(8, "big") + bytes(4)
            )
            for _ in range(30):
                await loop.sock_sendall(connection, bytes(10_000))
                await asyncio.sleep(0.01)
        await wait_until(lambda: server.metrics.ended["rate"] == 1)
        connection.close()
