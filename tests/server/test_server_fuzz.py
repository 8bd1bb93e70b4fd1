"""Whatever comes over a socket: the server answers the next caller, and logs no error."""

import asyncio
import contextlib
import json
import struct

import aiohttp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger

from pipecat_duplex import protocol
from pipecat_duplex.scripted import FINGERPRINT, Script, ScriptedBackend
from pipecat_duplex.session import STEP_SAMPLES, InvalidHistory
from pipecat_duplex.session.history import STREAMS, History
from tests.server.callers import SILENCE, calling, read_until, serving, wait_until

BOUNDED = settings(max_examples=25, deadline=None)
SCRIPT = Script(opening="one two", opening_step=2, step_secs=0.0, remembers=True)


@contextlib.asynccontextmanager
async def standing():
    """A server that must be as before afterwards: it takes a call, and has logged no error."""
    errors: list[str] = []
    sink = logger.add(errors.append, level="ERROR", format="{message}")
    try:
        async with serving(ScriptedBackend(SCRIPT, slots=4), slots=4, request_secs=0.5) as server:
            yield server
            await wait_until(lambda: server.sessions_open == 0)
            async with calling(server, format="pcm") as socket:
                await read_until(socket, protocol.Handshake)
                await socket.send_bytes(protocol.encode(protocol.Pcm(SILENCE)))
                assert await read_until(socket, protocol.AgentStep)
    finally:
        logger.remove(sink)
    assert not errors, errors


WORDS = st.text(st.characters(min_codepoint=1, max_codepoint=0x2FF), max_size=30)
HEADERS = st.dictionaries(
    st.sampled_from(["Host", "Origin", "Upgrade", "Connection", "Authorization", "Content-Length",
                     "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Transfer-Encoding", "X"]),
    st.sampled_from(["", "a", "127.0.0.1", "websocket", "Upgrade", "13", "99999", "chunked",
                     "Bearer x", "http://[", "dGhlIHNhbXBsZSBub25jZQ=="]) | WORDS,
    max_size=8,
)  # fmt: skip
PATHS = st.sampled_from(["/api/chat", "/api/chat?format=pcm", "/health", "/metrics", "/", "*", "x"])


@given(
    st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "CONNECT", "G\x00T", ""]),
    PATHS | WORDS,
    HEADERS,
    st.binary(max_size=200),
)
@BOUNDED
def test_requests(method, path, headers, body):
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode(errors="replace") + body

    async def attack():
        async with standing() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request)
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(reader.read(4096), 0.3)
            writer.close()

    asyncio.run(attack())


NUMBERS = st.integers(-(2**70), 2**70).map(str) | st.sampled_from(["nan", "inf", "1e400", "-0"])
QUERIES = st.dictionaries(
    st.sampled_from(["text_topk", "audio_topk", "text_temperature", "audio_temperature", "seed",
                     "text_seed", "max_steps", "text_prompt", "voice_prompt", "format", "tokens"]),
    NUMBERS | WORDS | st.sampled_from(["pcm", "opus", "move", "x" * 9000, "../../etc/passwd"]),
    max_size=6,
)  # fmt: skip


@given(QUERIES)
@BOUNDED
def test_queries_and_prompts(query):
    async def attack():
        async with standing() as server, aiohttp.ClientSession() as http:
            url = f"http://127.0.0.1:{server.port}/api/chat"
            try:
                async with http.ws_connect(url, params=query, timeout=5) as socket:
                    await asyncio.wait_for(socket.receive(), 5)
            except aiohttp.WSServerHandshakeError as refused:
                assert refused.status == 400

    asyncio.run(attack())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(
    st.sampled_from(["request", "text", "cut_in", "more", "utterance", "held", "step"]), JSON
)
BINARY = st.one_of(
    st.binary(max_size=300),
    st.tuples(st.sampled_from([4, 18, 19, 22]), FIELDS | JSON).map(
        lambda each: bytes([each[0]]) + json.dumps(each[1]).encode()
    ),
    st.tuples(st.sampled_from([1, 16, 17, 20, 21]), st.binary(max_size=8000)).map(
        lambda each: bytes([each[0]]) + each[1]
    ),
    st.just(protocol.encode(protocol.Pcm(SILENCE))),
    st.just(b"\x15"),
)


@given(st.sampled_from(["pcm", "opus"]), st.lists(BINARY | WORDS, max_size=8))
@BOUNDED
def test_messages(audio_format, messages):
    pytest.importorskip("sphn", reason="needs the opus extra")

    async def attack():
        async with standing() as server:
            async with calling(server, format=audio_format, tokens="1") as socket:
                with contextlib.suppress(ConnectionError):
                    for message in messages:
                        if isinstance(message, str):
                            await socket.send_str(message)
                        else:
                            await socket.send_bytes(message)
                    await socket.close()

    asyncio.run(attack())


@given(st.binary(max_size=400))
@BOUNDED
def test_frames(data):
    async def attack():
        async with standing() as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(
                b"GET /api/chat?format=pcm HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n"
                b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
            )
            await reader.readuntil(b"\r\n\r\n")
            writer.write(data)
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(reader.read(4096), 0.05)
            writer.close()

    asyncio.run(attack())


def a_history() -> bytes:
    codes = np.arange(STREAMS * 4, dtype=np.int32).reshape(STREAMS, 4)
    audio = np.zeros((2, STEP_SAMPLES), np.float32)
    return History(FINGERPRINT, codes, True, audio).to_bytes()


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), min_size=1, max_size=6),
    st.integers(0, 8000),
)
def test_histories(changes, length):
    data = bytearray(a_history())
    for place, value in changes:
        data[place] = value
    for each in (bytes(data), bytes(data[:length])):
        with contextlib.suppress(InvalidHistory):
            History.from_bytes(each).check(FINGERPRINT, 100, 1000)


@given(
    st.dictionaries(
        st.sampled_from(["fingerprint", "steps", "complete", "audio_steps"]), JSON, max_size=4
    ),
    st.binary(max_size=100),
)
def test_headers_of_histories(header, body):
    encoded = json.dumps(header).encode()
    with contextlib.suppress(InvalidHistory):
        History.from_bytes(struct.pack("<I", len(encoded)) + encoded + body)
