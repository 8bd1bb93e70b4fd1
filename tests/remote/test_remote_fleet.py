"""Which of several servers gets a call, and how servers are found: lists, names, registries."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp import web

from pipecat_duplex.remote import RemoteFleet, is_one_server
from pipecat_duplex.remote.discovery import read_workers
from pipecat_duplex.remote.fleet import ONE_OF_SEVERAL
from pipecat_duplex.remote.load import read_load
from pipecat_duplex.remote.session import RemoteLimits
from pipecat_duplex.scripted import ScriptedBackend
from pipecat_duplex.server import DuplexServer, ServerSettings
from pipecat_duplex.session import AtCapacity, DuplexError, SessionConfig
from tests.server.callers import FAST, chat_url, serving, wait_until

CONFIG = SessionConfig()
NOBODY = "ws://127.0.0.1:9"
PATIENT = RemoteLimits(dead_secs=60.0, stall_secs=60.0)


@contextlib.asynccontextmanager
async def several(count: int, slots: int) -> AsyncIterator[list[DuplexServer]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(serving(slots=slots)) for _ in range(count)]


def used(servers: list[DuplexServer]) -> list[int]:
    return [server.sessions_open for server in servers]


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for every answer: this is about who is called, on machines that are busy too."""
    monkeypatch.setattr("pipecat_duplex.remote.load.ASK_SECS", 20.0)
    monkeypatch.setattr("pipecat_duplex.remote.load.GRACE_SECS", 20.0)
    monkeypatch.setitem(ONE_OF_SEVERAL, "connect_secs", 20.0)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 200])
async def test_callers_are_spread(at_once: int, patient: None) -> None:
    async with several(5, slots=60) as servers:
        fleet = RemoteFleet([chat_url(server) for server in servers], limits=PATIENT)
        for _ in range(200 // at_once):
            await asyncio.gather(*(fleet.open(CONFIG) for _ in range(at_once)))
            assert max(used(servers)) - min(used(servers)) <= 2
        assert sum(used(servers)) == 200
        await fleet.close()


@pytest.mark.parametrize("at_once", [4, pytest.param(20, marks=pytest.mark.slow)])
async def test_callers_from_many_bots_are_spread(at_once: int, patient: None) -> None:
    """Bots that know nothing of each other, some of them at the same moment: as in processes of
    their own. All at once is what comes of a server that dies."""
    async with several(5, slots=60) as servers:
        fleets = [
            RemoteFleet([chat_url(server) for server in servers], limits=PATIENT) for _ in range(40)
        ]
        for first in range(0, 40, at_once):
            await asyncio.gather(*(each.open(CONFIG) for each in fleets[first : first + at_once]))
            assert max(used(servers)) - min(used(servers)) <= (3 if at_once < 20 else 5)
        await asyncio.gather(*(fleet.close() for fleet in fleets))


async def test_large_and_small_servers_are_filled_alike(patient: None) -> None:
    async with serving(slots=30) as large, serving(slots=10) as small:
        fleet = RemoteFleet([chat_url(large), chat_url(small)], limits=PATIENT)
        for _ in range(20):
            await fleet.open(CONFIG)
        assert abs(large.sessions_open / 30 - small.sessions_open / 10) < 0.2
        await fleet.close()


async def test_the_emptier_of_two_servers_is_called(patient: None) -> None:
    async with several(2, slots=20) as servers:
        fleet = RemoteFleet([chat_url(server) for server in servers], limits=PATIENT)
        for calls in range(1, 9):
            await fleet.open(CONFIG)
            assert sorted(used(servers)) == [calls // 2, (calls + 1) // 2]
        await fleet.close()


async def test_a_fleet_is_filled_to_its_last_slot() -> None:
    async with several(3, slots=4) as servers:
        fleet = RemoteFleet([NOBODY, *(chat_url(server) for server in servers)])
        await asyncio.gather(*(fleet.open(CONFIG) for _ in range(12)))
        with pytest.raises(AtCapacity, match="slots"):
            await fleet.open(CONFIG)
        assert used(servers) == [4, 4, 4]
        await fleet.close()


async def test_more_servers_than_are_asked() -> None:
    async with several(12, slots=1) as servers:
        fleet = RemoteFleet([chat_url(server) for server in servers])
        for _ in range(12):
            await fleet.open(CONFIG)
        with pytest.raises(AtCapacity):
            await fleet.open(CONFIG)
        await fleet.close()


async def test_a_server_that_comes_back_is_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipecat_duplex.remote.fleet.FAILED_SECS", 0.2)
    async with serving(slots=20) as stays:
        comes = DuplexServer(ScriptedBackend(FAST, slots=20), slots=20)
        await comes.start("127.0.0.1", 0)
        port = comes.port
        fleet = RemoteFleet([chat_url(stays), f"ws://127.0.0.1:{port}"])
        first = [await fleet.open(CONFIG) for _ in range(4)]
        assert comes.sessions_open > 0
        await comes.stop()
        await wait_until(lambda: any(session.failed for session in first))
        for _ in range(3):
            await fleet.open(CONFIG)  # Nobody is sent to where nobody is.
        again = DuplexServer(ScriptedBackend(FAST, slots=20), slots=20)
        await again.start("127.0.0.1", port)
        await asyncio.sleep(0.25)
        for _ in range(3):
            await fleet.open(CONFIG)
        assert again.sessions_open > 0
        await fleet.close()
        await again.stop()


async def test_a_server_that_hangs_costs_no_caller_much() -> None:
    async with hanging() as hung, serving(slots=20) as works:
        fleet = RemoteFleet([hung, chat_url(works)])
        began_secs = time.monotonic()
        for _ in range(4):
            await fleet.open(CONFIG)
        # Once connected to, it would take 1.5 s each.
        assert time.monotonic() - began_secs < 4 * 1.0
        assert works.sessions_open == 4
        await fleet.close()


@contextlib.asynccontextmanager
async def hanging() -> AsyncIterator[str]:
    """The address of a server that is connected to and never answers."""
    connected: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: connected.append(writer), "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in connected:
            writer.close()


async def test_a_server_that_drains_gets_no_call() -> None:
    async with serving(slots=20) as works, serving(slots=20) as drains:
        draining = asyncio.create_task(drains.drain(0))
        await draining
        fleet = RemoteFleet([chat_url(works), chat_url(drains)])
        for _ in range(4):
            await fleet.open(CONFIG)
        assert works.sessions_open == 4
        assert not drains.metrics.refused
        await fleet.close()


#
# a name with many addresses
#


class Names:
    """Stands in for a name server."""

    def __init__(self):
        self.addresses: list[str] = []
        self.works = True

    def look_up(self, host: str, port: int) -> list:
        if not self.works:
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        family = {True: socket.AF_INET6, False: socket.AF_INET}
        return [(family[":" in ip], socket.SOCK_STREAM, 6, "", (ip, port)) for ip in self.addresses]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    names, real = Names(), socket.getaddrinfo

    def getaddrinfo(host, port, *args, **kwargs):
        if host == "workers.test":
            return names.look_up(host, port)
        return real(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr("pipecat_duplex.remote.discovery.AGAIN_SECS", 0.0)
    yield names


@contextlib.asynccontextmanager
async def on_loopback(count: int) -> AsyncIterator[tuple[list[DuplexServer], int]]:
    """Servers with the same port on 127.0.0.1, 127.0.0.2, …"""
    servers: list[DuplexServer] = []
    port = 0
    try:
        for number in range(count):
            # A server on loopback answers to other names to those who show a key.
            settings = ServerSettings(api_keys=("secret",))
            server = DuplexServer(ScriptedBackend(FAST, slots=10), slots=10, settings=settings)
            try:
                await server.start(f"127.0.0.{number + 1}", port)
            except DuplexError as problem:
                pytest.skip(f"this machine has one loopback address: {problem}")
            servers.append(server)
            port = server.port
        yield servers, port
    finally:
        for server in servers:
            await server.stop()


async def test_a_name_with_many_addresses(names: Names) -> None:
    async with on_loopback(3) as (servers, port):
        names.addresses = ["127.0.0.1", "127.0.0.2"]
        fleet = RemoteFleet(f"ws://workers.test:{port}", api_key="secret")
        for _ in range(6):
            await fleet.open(CONFIG)
        assert used(servers)[2] == 0 and min(used(servers)[:2]) >= 2
        names.addresses = ["127.0.0.2", "127.0.0.3"]  # Looked up again.
        for _ in range(4):
            await fleet.open(CONFIG)
        assert servers[2].sessions_open > 0
        names.works = False  # The last answer stays.
        await fleet.open(CONFIG)
        assert sum(used(servers)) == 11
        await fleet.close()


async def test_two_families_of_one_machine_are_one_server(names: Names) -> None:
    async with on_loopback(1) as (servers, port):
        names.addresses = ["127.0.0.1", "::1"]
        fleet = RemoteFleet(f"ws://workers.test:{port}", api_key="secret")
        await fleet.open(CONFIG)
        assert len(fleet._members) == 1
        assert servers[0].sessions_open == 1
        await fleet.close()


async def test_a_name_that_nobody_knows(names: Names) -> None:
    names.works = False
    fleet = RemoteFleet("ws://workers.test:1")
    with pytest.raises(DuplexError, match=r"workers\.test:1 cannot be looked up: .*resolution"):
        await fleet.open(CONFIG)
    await fleet.close()


@pytest.mark.parametrize(
    ("url", "one"),
    [
        ("ws://127.0.0.1:8998", True),
        ("ws://[::1]:8998", True),
        ("ws://localhost:8998", True),
        ("wss://gpu.example/api/chat", False),
        ("http://10.0.0.1:8998", True),
        ("http://10.0.0.1:8990/workers", False),
        ("https://fleet.example/a/workers/", False),
        ("ws://10.0.0.1/workers", True),
    ],
)
def test_what_an_address_means(url: str, one: bool) -> None:
    assert is_one_server(url) is one


@pytest.mark.parametrize("urls", ["", "gpu", "ws://", [], [""], ["ws://a:1", 8998], "ftp://a"])
def test_addresses_that_cannot_be_used(urls) -> None:
    with pytest.raises(DuplexError):
        RemoteFleet(urls)


#
# a registry
#


class Registry:
    """A list of workers at ``/workers``."""

    def __init__(self):
        self.body = b""
        self.status = 200
        self.port = 0
        self._runner = web.AppRunner(web.Application())
        self._runner.app.router.add_get("/workers", self._answer)

    def name(self, *servers: DuplexServer, **fields) -> None:
        workers = [{"url": f"ws://127.0.0.1:{server.port}", **fields} for server in servers]
        self.body = json.dumps({"workers": workers}).encode()

    async def _answer(self, _: web.Request) -> web.Response:
        return web.Response(body=self.body, status=self.status)

    async def __aenter__(self) -> "Registry":
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_) -> None:
        await self._runner.cleanup()


async def test_a_registry_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipecat_duplex.remote.discovery.AGAIN_SECS", 0.0)
    async with serving(slots=20) as first, serving(slots=20) as second:
        async with Registry() as registry:
            fleet = RemoteFleet(f"http://127.0.0.1:{registry.port}/workers")
            with pytest.raises(DuplexError, match="no list of workers"):
                await fleet.open(CONFIG)
            registry.name()
            with pytest.raises(DuplexError, match="names no server"):
                await fleet.open(CONFIG)
            registry.name(first)
            running = await fleet.open(CONFIG)
            registry.name(first, second)
            await fleet.open(CONFIG)
            assert used([first, second]) == [1, 1]
            for status, body in [(500, b""), (200, b"<html>"), (200, b'{"workers": []}')]:
                registry.status, registry.body = status, body
                await fleet.open(CONFIG)
        # It is gone: calls go on, and others find the workers that it named last.
        await fleet.open(CONFIG)
        assert sum(used([first, second])) == 6
        assert not running.ended
        await fleet.close()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"workers": 3}', b"[" * 100_000, b"\xff", b'{"workers": null}']
)
def test_answers_that_are_no_list(body: bytes) -> None:
    with pytest.raises(DuplexError):
        read_workers(body)


def test_entries_that_make_no_sense_are_left_out() -> None:
    entries = [{"url": "ws://a:1"}, {"url": 3}, 7, {}, {"url": "ws://b:1", "draining": True}]
    entries += [{"url": "ws://[1"}, {"url": "ws://a:1/api/chat"}]
    found = read_workers(json.dumps({"workers": entries}).encode())
    assert [address.url for address in found] == ["ws://a:1/api/chat"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"ok",
        b"[]",
        b'{"status": "ok"}',
        b'{"status": "ok", "slots": 0, "slots_used": 0}',
        b'{"status": "ok", "slots": "8", "slots_used": 1}',
        b'{"status": "ok", "slots": 8, "slots_used": -1}',
        b'{"status": "ok", "slots": true, "slots_used": 1}',
    ],
)
def test_what_others_say_of_their_health(body: bytes) -> None:
    assert read_load(body) is None


#
# whatever is raised is a DuplexError
#


@pytest.mark.parametrize(
    "environment",
    [
        {"SOCKS_PROXY": "socks5://127.0.0.1:1"},
        {"ALL_PROXY": "socks5h://127.0.0.1:1", "https_proxy": "socks4://127.0.0.1:1"},
        {"https_proxy": "http://127.0.0.1:1"},
        {"http_proxy": "ftp://127.0.0.1:1"},
        {"http_proxy": "http://user@127.0.0.1:1"},
        {"http_proxy": "http://127.0.0.1:99999"},
        {"http_proxy": "nonsense"},
    ],
)
@pytest.mark.parametrize("kind", ["list", "registry", "name"])
async def test_proxies(
    environment: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("all_proxy", "http_proxy", "https_proxy", "no_proxy", "socks_proxy", "ws_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    urls: dict[str, str | list[str]] = {
        "list": [NOBODY, "ws://127.0.0.2:9"],
        "registry": "http://127.0.0.1:9/workers",
        "name": "ws://gpu.invalid:9",
    }
    fleet = RemoteFleet(urls[kind])
    with pytest.raises(DuplexError):
        await fleet.open(CONFIG)
    await fleet.close()


@pytest.mark.parametrize("host", ["a" * 70 + ".example", "a..example", "ü" * 70, "1.2.3.4.5"])
async def test_names_that_are_none(host: str) -> None:
    fleet = RemoteFleet([f"ws://{host}:9", f"wss://{host}"])
    with pytest.raises(DuplexError):
        await fleet.open(CONFIG)
    await fleet.close()
