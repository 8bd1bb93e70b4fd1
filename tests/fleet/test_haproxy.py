"""The HAProxy configuration of ``deploy/``, with the real HAProxy and real workers."""

import asyncio
import contextlib
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from pipecat_duplex.remote import RemoteBackend
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.server import DuplexServer
from pipecat_duplex.session import AtCapacity, DuplexError, SessionConfig
from pipecat_duplex.session.continued import ContinuedSession
from tests.server.callers import SILENCE, chat_url, serving, take

CONFIG = SessionConfig()
CONFIGURATION = Path(__file__).parents[2] / "deploy" / "haproxy" / "haproxy.cfg"
BOARD = CONFIGURATION.parents[1] / "compose" / "grafana" / "dashboards" / "pipecat-duplex.json"

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="HAProxy is not installed")


class Balancer:
    """A running HAProxy."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, stats_port: int):
        self.process = process
        self.url = f"ws://127.0.0.1:{port}"
        self._http = f"http://127.0.0.1:{port}"
        self._stats = f"http://127.0.0.1:{stats_port}"

    async def get(self, path: str) -> tuple[int, str]:
        return await _get(self._http + path)

    async def metrics(self) -> str:
        return (await _get(self._stats + "/metrics"))[1]

    async def wait_for_workers(self, count: int) -> None:
        """Wait until it has noticed how many workers take calls."""
        until_secs = time.monotonic() + 15
        wanted = f'haproxy_backend_active_servers{{proxy="workers"}} {count}'
        while wanted not in (text := await self.metrics()):
            assert time.monotonic() < until_secs, text
            await asyncio.sleep(0.05)

    async def reload(self) -> None:
        """Reload, and wait until the new process answers."""
        before = self._children()
        until_secs = time.monotonic() + 15
        while not self._children() - before:
            assert time.monotonic() < until_secs, "it was not reloaded"
            # A master that has just started its worker may not listen yet.
            self.process.send_signal(signal.SIGUSR2)
            await asyncio.sleep(0.5)
        await asyncio.sleep(0.2)
        await self.metrics()

    def _children(self) -> set[str]:
        pid = self.process.pid
        return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


async def _get(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return response.status, await response.text()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@contextlib.asynccontextmanager
async def balancing(*workers: DuplexServer | int) -> AsyncIterator[Balancer]:
    """HAProxy with the configuration of ``deploy/`` in front of two workers."""
    port, stats_port = free_ports(2)
    ports = [worker if isinstance(worker, int) else worker.port for worker in workers]
    environment = {
        **os.environ,
        "LISTEN": f"127.0.0.1:{port}",
        "STATS_LISTEN": f"127.0.0.1:{stats_port}",
        "WORKER_1": f"127.0.0.1:{ports[0]}",
        "WORKER_2": f"127.0.0.1:{ports[1]}",
    }
    process = await asyncio.create_subprocess_exec(
        "haproxy", "-W", "-f", str(CONFIGURATION), env=environment, start_new_session=True
    )
    balancer = Balancer(process, port, stats_port)
    try:
        until_secs = time.monotonic() + 15
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                if await balancer.metrics():
                    break
            assert process.returncode is None, "HAProxy does not take the configuration"
            assert time.monotonic() < until_secs, "HAProxy did not start"
            await asyncio.sleep(0.05)
        yield balancer
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def test_calls_go_to_the_worker_with_the_fewest() -> None:
    async with serving(slots=8) as first, serving(slots=8) as second:
        async with balancing(first, second) as balancer:
            backend = RemoteBackend(balancer.url)
            for _ in range(6):
                await backend.open(CONFIG)
            assert first.sessions_open == second.sessions_open == 3
            # What is for the inside stays there.
            assert (await balancer.get("/metrics"))[0] == 404
            assert (await balancer.get("/health"))[0] == 200
            shown = BOARD.read_text()
            told = await balancer.metrics()
            for name in set(re.findall(r"haproxy_\w+", shown)):
                assert f"{name}{{" in told
            await backend.close()


async def test_a_full_worker_is_passed_over_and_a_full_fleet_says_so() -> None:
    async with serving(slots=1) as first, serving(slots=2) as second:
        # Filled behind the balancer's back, which knows of no call.
        direct = [RemoteBackend(chat_url(first)), RemoteBackend(chat_url(second))]
        for backend in direct:
            await backend.open(CONFIG)
        async with balancing(first, second) as balancer:
            backend = RemoteBackend(balancer.url, attempts=1)
            await backend.open(CONFIG)
            assert second.sessions_open == 2
            with pytest.raises(AtCapacity, match="slots are taken"):
                await backend.open(CONFIG)
            async with aiohttp.ClientSession() as http:
                with pytest.raises(aiohttp.WSServerHandshakeError) as refusal:
                    await http.ws_connect(f"{balancer.url}/api/chat?format=pcm")
            assert refusal.value.status == 503
            assert refusal.value.headers is not None
            assert refusal.value.headers["Retry-After"] == "1"
            await backend.close()
        for each in direct:
            await each.close()


async def test_a_worker_that_is_gone_is_passed_over() -> None:
    async with serving(slots=4) as works:
        async with balancing(free_ports(1)[0], works) as balancer:
            backend = RemoteBackend(balancer.url, attempts=1)
            for _ in range(3):
                await backend.open(CONFIG)
            assert works.sessions_open == 3
            await backend.close()
    async with balancing(*free_ports(2)) as balancer:
        await balancer.wait_for_workers(0)
        assert (await balancer.get("/health"))[0] == 503
        with pytest.raises(AtCapacity, match="no worker is up"):
            await RemoteBackend(balancer.url, attempts=1).open(CONFIG)


@pytest.mark.slow
async def test_a_worker_that_drains_keeps_its_calls_and_gets_no_other() -> None:
    async with serving(slots=4) as drains, serving(slots=4) as stays:
        async with balancing(drains, stays) as balancer:
            backend = RemoteBackend(balancer.url)
            sessions = [await backend.open(CONFIG) for _ in range(2)]
            assert drains.sessions_open == stays.sessions_open == 1
            draining = asyncio.create_task(drains.drain(20))
            await asyncio.sleep(0)
            # At once, from the worker's 503, and later, from its health.
            await backend.open(CONFIG)
            await balancer.wait_for_workers(1)
            await backend.open(CONFIG)
            assert (drains.sessions_open, stays.sessions_open) == (1, 3)
            for session in sessions:
                session.send(SILENCE)
                assert len(await take(session, 1)) == 1
            await backend.close()
            await draining


@pytest.mark.slow
async def test_a_reload_cuts_no_call() -> None:
    async with serving(slots=4) as first, serving(slots=4) as second:
        async with balancing(first, second) as balancer:
            backend = RemoteBackend(balancer.url)
            session = await backend.open(CONFIG)
            session.send(SILENCE)
            assert len(await take(session, 1)) == 1
            for _ in range(2):
                await balancer.reload()
                session.send(SILENCE)
                assert len(await take(session, 1)) == 1
                await backend.open(CONFIG)
            assert not session.ended
            assert first.sessions_open + second.sessions_open == 3
            await backend.close()


async def test_a_call_moves_when_its_worker_dies() -> None:
    script = Script(opening="one two three four", opening_step=2, step_secs=0.001, remembers=True)
    async with contextlib.AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(serving(ScriptedBackend(script, slots=4), slots=4))
            for _ in range(2)
        ]
        balancer = await stack.enter_async_context(balancing(*servers))
        backend = RemoteBackend(balancer.url, attempts=1)
        inner = await backend.open(CONFIG)
        assert inner.memory is not None
        session = ContinuedSession(backend, CONFIG, inner, inner.memory, give_up_secs=10)
        for _ in range(6):
            session.send(SILENCE)
        steps = await take(session, 6)
        (holder,) = [server for server in servers if server.sessions_open]
        await holder.stop()
        until_secs = time.monotonic() + 15
        while not session.moves and time.monotonic() < until_secs:
            session.send(SILENCE)
            steps += await take(session, 1)
            await asyncio.sleep(0.02)
        for _ in range(10):
            session.send(SILENCE)
        steps += await take(session, 10)
        said = "".join(step.text_piece or "" for step in steps).replace("▁", " ").split()
        assert said == "one two three four".split()
        await session.close()
        await backend.close()


async def test_a_balancer_that_is_gone_is_told() -> None:
    (port,) = free_ports(1)
    with pytest.raises(DuplexError, match="cannot reach"):
        await RemoteBackend(f"ws://127.0.0.1:{port}", attempts=1).open(CONFIG)
