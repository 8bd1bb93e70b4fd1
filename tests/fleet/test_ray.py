"""A fleet on a real Ray cluster of three nodes on this machine."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator

import pytest

from pipecat_duplex.remote import RemoteFleet
from pipecat_duplex.session import STEP_SECS, DuplexError, SessionConfig
from pipecat_duplex.session.continued import ContinuedSession
from tests.fleet.scripted import COUNT
from tests.server.callers import SILENCE

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytest.importorskip("ray.cluster_utils", reason="this Ray has no cluster for tests")

from pipecat_duplex.fleet.cluster import NAMESPACE, FleetCluster  # noqa: E402
from pipecat_duplex.fleet.options import WorkerOptions  # noqa: E402
from pipecat_duplex.fleet.worker import REGISTRY  # noqa: E402

CONFIG = SessionConfig()
OPTIONS = WorkerOptions(slots=6, cpus=1, backend="tests.fleet.scripted:make", drain_secs=5)
MEMORY = 80_000_000


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    from ray.cluster_utils import Cluster

    # A busy machine takes its time to start this many processes.
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "120000")
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "120")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    )
    head = {"num_cpus": 1, "object_store_memory": MEMORY, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2, object_store_memory=MEMORY)
        ray.init(cluster.address, namespace=NAMESPACE, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


class Caller:
    """A call by the clock with an agent that counts."""

    def __init__(self, fleet: RemoteFleet, session: ContinuedSession):
        self._fleet = fleet
        self._session = session
        self.words: list[str] = []
        self._tasks = [asyncio.create_task(self._feed()), asyncio.create_task(self._listen())]

    @property
    def moves(self) -> int:
        return self._session.moves

    async def _feed(self) -> None:
        while True:
            self._session.send(SILENCE)
            await asyncio.sleep(STEP_SECS)

    async def _listen(self) -> None:
        async for step in self._session.steps():
            if step.text_piece:
                self.words.append(step.text_piece.removeprefix("▁"))

    async def goes_on(self) -> None:
        """Wait for further words; nothing was lost, and nothing came twice."""
        until = len(self.words) + 3
        async with asyncio.timeout(60):
            while len(self.words) < until:
                for task in self._tasks:
                    assert not task.done(), task.exception()
                await asyncio.sleep(0.05)
        assert self.words == COUNT.split()[: len(self.words)]

    async def hang_up(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()


@contextlib.asynccontextmanager
async def calling(url: str, count: int) -> AsyncIterator[tuple[RemoteFleet, list[Caller]]]:
    fleet = RemoteFleet(url)
    callers: list[Caller] = []
    try:
        for _ in range(count):
            inner = await fleet.open(CONFIG)
            assert inner.memory is not None
            session = ContinuedSession(fleet, CONFIG, inner, inner.memory, give_up_secs=60)
            callers.append(Caller(fleet, session))
        yield fleet, callers
    finally:
        for caller in callers:
            await caller.hang_up()
        await fleet.close()


@pytest.mark.slow
async def test_a_fleet_from_its_start_to_its_end(cluster) -> None:
    fleet = FleetCluster(ray)
    with pytest.raises(DuplexError, match="no fleet"):
        fleet.status()
    with pytest.raises(DuplexError, match=r"cannot start.*no_such_module"):
        await asyncio.to_thread(
            fleet.up, WorkerOptions(cpus=1, backend="no_such_module:x"), workers=1, registry_port=0
        )
    with pytest.raises(DuplexError, match="room for 0 of 1"):
        await asyncio.to_thread(fleet.up, WorkerOptions(cpus=64), workers=1)
    await asyncio.to_thread(fleet.up, OPTIONS, workers=3)
    status = fleet.status()
    assert len(status.workers) == 3 and not status.silent
    assert len({worker.node for worker in status.workers}) > 1

    async with calling(status.registry, 3) as (bots, callers):
        for caller in callers:
            await caller.goes_on()
        busiest = max(await reported(fleet, used=3), key=lambda worker: worker.slots_used)

        # A worker dies: its call moves, and Ray starts it again.
        ray.kill(ray.get_actor(busiest.name, NAMESPACE), no_restart=False)
        for caller in callers:
            await caller.goes_on()
        assert sum(caller.moves for caller in callers) == busiest.slots_used
        await reported(fleet, workers=3)

        # Fewer workers, then a machine less, then other workers: calls move first.
        await asyncio.to_thread(fleet.scale, 2)
        for caller in callers:
            await caller.goes_on()
        assert len(fleet.status().workers) == 2
        await asyncio.to_thread(fleet.scale, 3)
        workers = fleet.status().workers
        assert len(workers) == 3
        with pytest.raises(DuplexError, match="no machine"):
            fleet.drain("nowhere")
        node = workers[0].node
        gone = await asyncio.to_thread(fleet.drain, node[:12])
        assert gone and node not in {worker.node for worker in fleet.status().workers}
        for caller in callers:
            await caller.goes_on()
        old = {worker.name for worker in fleet.status().workers}
        await asyncio.to_thread(fleet.up, OPTIONS, workers=2)
        assert not old & {worker.name for worker in fleet.status().workers}
        for caller in callers:
            await caller.goes_on()

        # The registry dies: calls go on, and others find the workers by the last list.
        ray.kill(ray.get_actor(REGISTRY, NAMESPACE))
        session = await bots.open(CONFIG)
        await session.close()
        # And so with the head node; calls of a worker that was on it move.
        ray.shutdown()
        head = cluster.head_node
        await asyncio.to_thread(head.kill_all_processes, check_alive=False, allow_graceful=False)
        for caller in callers:
            await caller.goes_on()
        session = await bots.open(CONFIG)
        await session.close()


async def reported(fleet: FleetCluster, *, workers: int = 3, used: int | None = None) -> list:
    """Wait until the registry says so."""
    async with asyncio.timeout(90):
        while True:
            found = fleet.status().workers
            if len(found) == workers and used in (None, sum(each.slots_used for each in found)):
                return found
            await asyncio.sleep(0.1)
