"""Connections without a call: deadlines, numbers, names, and what is told of them."""

import asyncio
import contextlib
import socket
import ssl

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loguru import logger

from pipecat_duplex import protocol
from pipecat_duplex.remote import RemoteBackend
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.server.access import is_local_host
from pipecat_duplex.server.connections import FrameCounter
from pipecat_duplex.server.limit import AudioDebt, LineLimit
from pipecat_duplex.server.listen import bind, is_loopback, url_of
from pipecat_duplex.session import AtCapacity, BackendHealth, DuplexError, SessionConfig
from pipecat_duplex.session.fair_clock import MAX_TICK_SECS, FairClock
from tests.server.callers import FAST, SILENCE, calling, chat_url, read_until, serving, wait_until


@contextlib.contextmanager
def logged():
    lines: list[str] = []
    sink = logger.add(lines.append, level="INFO", format="{message}")
    try:
        yield lines
    finally:
        logger.remove(sink)


async def ask(server, path: str = "/health", **headers) -> tuple[int, dict, dict]:
    async with aiohttp.ClientSession() as http:
        url = f"http://127.0.0.1:{server.port}{path}"
        async with http.get(url, headers=headers) as response:
            return response.status, await response.json(), dict(response.headers)


HALVES = [
    b"",
    b"GET /hea",
    b"GET /api/chat?format=pcm HTTP/1.1\r\nHost: a\r\nX: ",
    b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /health HTT",
]


@pytest.mark.parametrize("half", HALVES)
async def test_half_a_request_has_a_deadline(half):
    async with serving(request_secs=0.3) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(half)
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                while await reader.read(1000):
                    pass
        writer.close()


@pytest.mark.parametrize("settings", [{"max_waiting_connections": 8}, {"max_connections": 8}])
async def test_those_who_never_finish_a_request_keep_nobody_out(settings):
    async with serving(**settings) as server:
        async with calling(server, format="pcm") as held:
            await read_until(held, protocol.Handshake)
            crowd = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(30)]
            for _, writer in crowd:
                writer.write(HALVES[2])
            assert (await ask(server))[0] == 200
            # A call is none of those that wait.
            await held.send_bytes(protocol.encode(protocol.Pcm(SILENCE)))
            assert await read_until(held, protocol.AgentStep)
            for _, writer in crowd:
                writer.close()


async def test_a_handshake_of_tls_has_the_deadline_too(tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    async with serving() as server:
        pass
    from pipecat_duplex.server import DuplexServer, ServerSettings

    server = DuplexServer(ScriptedBackend(FAST), slots=1, settings=ServerSettings(request_secs=0.3))
    await server.start("127.0.0.1", 0, context)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            await reader.read()
    writer.close()
    await server.stop()


async def test_calls_of_one_address_can_be_limited():
    async with serving(slots=5, max_calls_per_address=2) as server:
        async with calling(server, format="pcm"), calling(server, format="pcm"):
            status, body, headers = await ask(
                server, "/api/chat?format=pcm", Upgrade="websocket", Connection="Upgrade"
            )
            assert status == 429 and body["error"] == "address" and "Retry-After" in headers
        await wait_until(lambda: server.sessions_open == 0)
        async with calling(server, format="pcm") as again:
            await read_until(again, protocol.Handshake)


#
# names
#

LOCAL = ["localhost", "LOCALHOST:8998", "localhost.", "127.0.0.1:1", "127.1.2.3", "[::1]:8998"]
FOREIGN = [
    "evil.example",
    "evil.example:8998",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil-localhost",
    "192.168.0.1",
    "[::2]",
    "0.0.0.0",
    "localhost@evil.example",
    "evil.example#localhost",
    "localhost:x",
    "",
]


@pytest.mark.parametrize("host", LOCAL)
def test_names_of_this_machine(host):
    assert is_local_host(host)


@pytest.mark.parametrize("host", FOREIGN)
def test_names_of_others(host):
    assert not is_local_host(host)
    assert is_local_host(host, ["*"])


def test_names_that_a_proxy_passes_on():
    assert is_local_host("bot.example:443", ["https://bot.example"])
    assert not is_local_host("bot.example.evil", ["https://bot.example"])


@pytest.mark.parametrize("path", ["/api/chat?format=pcm", "/health", "/metrics", "/nothing"])
async def test_a_rebound_page_gets_nothing_without_a_key(path):
    async with serving() as server:
        name = f"evil.example:{server.port}"
        status, body, _ = await ask(server, path, Host=name, Origin=f"http://{name}")
        assert status == 403 and body["error"] == "host"
    async with serving(api_keys=("secret",)) as server:
        assert (await ask(server, "/health", Host="bot.example"))[0] == 200


async def test_answers_are_not_guessed_at():
    async with serving() as server:
        for path in ("/health", "/nothing"):
            async with aiohttp.ClientSession() as http:
                async with http.get(f"http://127.0.0.1:{server.port}{path}") as response:
                    assert response.headers["X-Content-Type-Options"] == "nosniff"
                    assert response.headers["Content-Security-Policy"] == "default-src 'none'"


async def test_a_page_beside_the_api(tmp_path):
    from pipecat_duplex.server import DuplexServer

    (tmp_path / "index.html").write_text("<p>hello")
    (tmp_path.parent / "secret.txt").write_text("secret")
    server = DuplexServer(ScriptedBackend(FAST), slots=1, static=tmp_path)
    await server.start("127.0.0.1", 0)
    async with aiohttp.ClientSession() as http:
        base = f"http://127.0.0.1:{server.port}"
        async with http.get(f"{base}/") as response:
            assert await response.text() == "<p>hello"
            assert "frame-ancestors" in response.headers["Content-Security-Policy"]
        for path in ("/../secret.txt", "/%2e%2e/secret.txt", "/%2e%2e%2fsecret.txt"):
            async with http.get(aiohttp.client.URL(base + path, encoded=True)) as response:
                assert response.status in (400, 403, 404)
        async with http.get(f"{base}/health") as response:
            assert response.status == 200
    await server.stop()


#
# what is told
#


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /api/chat?api_key=SECRET\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /api/chat HTTP/1.1\r\nHost: x\r\nAuthorization : Bearer SECRET\r\n\r\n",
        b"GET /api/chat?api_key=SECRET" + b"x" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /api/chat?api_key=SECRET HTTP/9.9\r\nHost: x\r\n\r\n",
        b"SECRET\r\n\r\n",
        b"GET /api/chat HTTP/1.1\r\nHost: 127.0.0.1\r\nkyutai-api-key: SECRET\x01\r\n\r\n",
        b"GET /api/chat?text_topk=x&api_key=SECRET HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"POST /health HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer SECRET\r\n"
        b"Content-Length: SECRET\r\n\r\n",
    ],
)
async def test_no_key_in_a_log(request_bytes, caplog, capfd):
    with logged() as lines:
        async with serving(api_keys=("SECRET",)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request_bytes)
            with contextlib.suppress(TimeoutError, ConnectionError):
                await asyncio.wait_for(reader.read(1000), 1)
            writer.close()
    text = "".join(lines) + caplog.text + "".join(capfd.readouterr())
    assert "SECRET" not in text
    assert len(text) < 5000


async def test_a_refusal_is_a_line_and_a_flood_of_them_is_not():
    with logged() as lines:
        async with serving(api_keys=("secret",)) as server:
            async with aiohttp.ClientSession() as http:
                for _ in range(200):
                    async with http.get(chat_url(server, format="pcm")) as response:
                        assert response.status == 401
    told = [line for line in lines if "401" in line]
    assert told and "key" in told[0] and "127.0.0.1" in told[0]
    assert len(told) < 120


def test_lines_that_were_left_out_are_counted():
    limit = LineLimit(per_sec=1, burst=2)
    assert [limit.take(10.0) for _ in range(5)] == [0, 0, None, None, None]
    assert limit.take(11.5) == 3
    assert limit.take(20.0) == 0


#
# health
#


class Reporting(ScriptedBackend):
    state = BackendHealth(True)

    def health(self) -> BackendHealth:
        return self.state


async def test_health_is_the_backends():
    backend = Reporting(FAST, slots=2)
    async with serving(backend) as server:
        assert await ask(server) and (await ask(server))[0] == 200
        backend.state = BackendHealth(False, "a step hangs", 7.5, stuck=True)
        status, body, _ = await ask(server)
        assert (status, body["status"], body["reason"]) == (503, "stuck", "a step hangs")
        with pytest.raises(AtCapacity, match="a step hangs"):
            await RemoteBackend(chat_url(server)).open(SessionConfig())
        assert server.metrics.refused["stuck"] == 1 and not server.sessions_open
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{server.port}/metrics") as response:
                text = await response.text()
        assert "pipecat_duplex_lag_seconds 7.5" in text and "pipecat_duplex_healthy 0" in text
        backend.state = BackendHealth(False, "it gave up")
        assert (await ask(server))[1]["status"] == "failed"


@pytest.mark.slow
async def test_a_step_that_does_not_come_back_shows(monkeypatch):
    monkeypatch.setattr("pipecat_duplex.server.server.STUCK_SECS", 0.3)
    backend = ScriptedBackend(Script(step_secs=0.001, stalls={3: 2.0}), slots=2)
    async with serving(backend) as server, calling(server, format="pcm") as socket:
        await read_until(socket, protocol.Handshake)
        for _ in range(5):
            await socket.send_bytes(protocol.encode(protocol.Pcm(SILENCE)))
        await read_until(socket, protocol.AgentStep, 3)
        await asyncio.sleep(0.6)
        status, body, _ = await ask(server)
        assert status == 503 and body["status"] == "stuck"
        await read_until(socket, protocol.AgentStep, 2)
        assert (await ask(server))[0] == 200


@pytest.mark.slow
async def test_nobody_is_hung_up_on_for_a_stall_of_the_server(monkeypatch):
    """The process stands still for longer than any deadline of its callers."""
    stalled_secs = 0.0
    clock = asyncio.get_running_loop().time

    def stalling() -> float:
        return clock() + stalled_secs

    from pipecat_duplex.server import server as module

    monkeypatch.setattr(module, "FairClock", lambda: FairClock(stalling))
    async with serving(dead_secs=3, idle_secs=5, send_secs=2) as server:
        async with calling(server, format="pcm") as socket:
            await read_until(socket, protocol.Handshake)
            for _ in range(3):
                stalled_secs += 20.0
                await asyncio.sleep(0.4)
            await socket.send_bytes(protocol.encode(protocol.Pcm(SILENCE)))
            assert await read_until(socket, protocol.AgentStep)


def test_a_clock_that_stands_still_with_the_process():
    now = [100.0]
    clock = FairClock(lambda: now[0])
    start_secs = clock.now_secs()
    for _ in range(10):
        now[0] += 0.1
        clock.tick()
    assert clock.now_secs() - start_secs == pytest.approx(1)
    now[0] += 60
    assert clock.now_secs() - start_secs == pytest.approx(1 + MAX_TICK_SECS)
    clock.tick()
    now[0] += 0.1
    assert clock.now_secs() - start_secs == pytest.approx(1.1 + MAX_TICK_SECS)


def test_audio_now_and_then_runs_into_debt_and_a_gap_is_forgiven():
    debt = AudioDebt(0.0)
    for step in range(10):
        debt.pay(0.08, 0.7 * step)
    assert debt.secs(7.0) > 5
    debt = AudioDebt(0.0)
    assert debt.secs(20.0) == 20
    for step in range(300):
        debt.pay(0.08, 20 + 0.08 * step)
    assert debt.secs(44) < 0.2


#
# frames and sockets
#


def frame_of(size: int, masked: bool) -> bytes:
    mask = 0x80 if masked else 0
    if size < 126:
        head = bytes([0x82, mask | size])
    elif size < 1 << 16:
        head = bytes([0x82, mask | 126]) + size.to_bytes(2, "big")
    else:
        head = bytes([0x82, mask | 127]) + size.to_bytes(8, "big")
    return head + bytes(4 if masked else 0) + bytes(size)


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 125, 126, 300, 70_000]), st.booleans()), max_size=6),
    st.lists(st.integers(1, 5000), min_size=1, max_size=8),
)
def test_frames_are_counted_however_they_are_cut(frames, cuts):
    data = b"".join(frame_of(*each) for each in frames)
    counter, counted, start, turn = FrameCounter(), 0, 0, 0
    while start < len(data):
        size = cuts[turn % len(cuts)]
        counted += counter.count(data[start : start + size])
        start, turn = start + size, turn + 1
    assert counted == len(frames)


def test_localhost_has_one_port_on_all_its_addresses():
    sockets = bind("localhost", 0)
    assert len({each.getsockname()[1] for each in sockets}) == 1
    assert is_loopback(sockets)
    for each in sockets:
        each.close()


def test_an_address_that_the_machine_has_not_is_left_out(monkeypatch):
    def both(host, port, **kwargs):
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    (only,) = bind("localhost", 0)
    assert only.getsockname()[0] == "127.0.0.1"
    only.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.name.invalid", "a" * 70, "\udc80"])
def test_no_address_is_an_error_in_words(host):
    with pytest.raises(DuplexError, match="cannot listen on"):
        bind(host, 0)


def test_a_port_that_is_taken_is_an_error_in_words():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(DuplexError, match="cannot listen on"):
            bind("localhost", taken.getsockname()[1])


def test_addresses_as_they_can_be_called():
    assert url_of("ws", "::1", 80, "/x") == "ws://[::1]:80/x"
    assert url_of("ws", "localhost", 80) == "ws://localhost:80"
