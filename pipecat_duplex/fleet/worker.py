"""One worker of a fleet: an engine and its socket, in a process that Ray started."""

import asyncio
import importlib
import os
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from loguru import logger

from pipecat_duplex.fleet.options import WorkerOptions
from pipecat_duplex.fleet.registry import REPORT_SECS, WorkerEntry
from pipecat_duplex.server import DuplexServer, ServerSettings
from pipecat_duplex.session import DuplexBackend, DuplexError
from pipecat_duplex.session.health import ReportsHealth

REGISTRY = "registry"
"""The name of the registry's actor."""

Result = TypeVar("Result")


class FleetWorker:
    """An engine and its server, as an actor.

    They run in an event loop of their own: what Ray asks of the actor never waits for a step, and
    no step waits for Ray. No method is a coroutine, or Ray would run one at a time.
    """

    def __init__(self, name: str, options: WorkerOptions):
        """Initialize; the engine loads meanwhile.

        Args:
            name: Its name in the cluster.
            options: What it is.
        """
        import ray

        self._name = name
        self._options = options
        self._node = ray.get_runtime_context().get_node_id()
        self._ip = ray.util.get_node_ip_address()
        self._registry = _RegistryLine(ray)
        self._registry.take_cores(name, self._node, options.cpus)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._starting = self._run(_start_server(options))
        self._reporting = threading.Thread(target=self._report_for_ever, daemon=True)
        self._reporting.start()

    def wait_until_ready(self) -> WorkerEntry:
        """Wait until calls are taken.

        Raises:
            DuplexError: The engine cannot be loaded.
        """
        self._starting.result()
        return self.entry()

    def options(self) -> WorkerOptions:
        """Return what it is."""
        return self._options

    def entry(self) -> WorkerEntry:
        """Return what it says of itself; it waits for its start."""
        server, _ = self._starting.result()
        host = f"[{self._ip}]" if ":" in self._ip else self._ip
        return WorkerEntry(
            name=self._name,
            node=self._node,
            url=f"ws://{host}:{server.port}/api/chat",
            slots=self._options.slots,
            slots_used=server.sessions_open,
            draining=server.draining,
        )

    def drain(self) -> None:
        """Send calls elsewhere, and wait until they have gone."""
        if not self._starting.done() or self._starting.exception() is not None:
            return  # Nobody calls yet.
        server, _ = self._starting.result()
        draining = self._run(server.drain(self._options.drain_secs))
        draining.result()

    def _run(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _report_for_ever(self) -> None:
        try:
            _, backend = self._starting.result()
        except Exception as error:
            logger.error(f"{self._name} cannot start: {error}")
            return
        while True:
            self._registry.report(self.entry())
            if isinstance(backend, ReportsHealth):
                health = backend.health()
                if not health.ok and not health.stuck:
                    logger.error(f"{self._name} ends, and Ray starts it again: {health.reason}")
                    os._exit(1)
            time.sleep(REPORT_SECS)


async def _start_server(options: WorkerOptions) -> tuple[DuplexServer, DuplexBackend]:
    backend = await _make_backend(options)
    settings = ServerSettings(api_keys=options.api_keys)
    server = DuplexServer(backend, slots=options.slots, settings=settings)
    await server.start(options.host, 0)
    return server, backend


async def _make_backend(options: WorkerOptions) -> DuplexBackend:
    if options.backend is not None:
        module, _, function = options.backend.partition(":")
        return getattr(importlib.import_module(module), function)(options)
    from pipecat_duplex.engine import Engine

    device = "cuda" if options.gpus else None
    return await Engine.load(options.checkpoint, slots=options.slots, device=device)


class _RegistryLine:
    """What a worker has to do with the registry, which may be away at any time."""

    def __init__(self, ray: Any):
        self._ray = ray
        self._report: Any = None

    def report(self, entry: WorkerEntry) -> None:
        """Report, unless the last report is still on its way."""
        try:
            if self._report is not None:
                done, _ = self._ray.wait([self._report], timeout=0)
                if not done:
                    return
            self._report = self._ray.get_actor(REGISTRY).report.remote(entry)
        # Ray has an error for each way in which an actor can be away.
        except Exception as error:
            self._report = None
            logger.debug(f"{entry.name} cannot report: {error}")

    def take_cores(self, name: str, node: str, count: int) -> None:
        """Keep this process to cores that no other worker of the machine has."""
        if not hasattr(os, "sched_setaffinity") or count < 1:
            return
        try:
            available = sorted(os.sched_getaffinity(0))
            registry = self._ray.get_actor(REGISTRY)
            claim = registry.claim_cores.remote(name, node, available, count)
            cores = self._ray.get(claim, timeout=10)
        except Exception as error:
            logger.warning(f"{name} shares the machine's cores with other workers: {error}")
            return
        if cores:
            for thread in os.listdir("/proc/self/task"):
                os.sched_setaffinity(int(thread), cores)


def wait_for(condition: Callable[[], bool], secs: float, what: str) -> None:
    """Wait for something that happens in the cluster.

    Args:
        condition: Whether it has happened.
        secs: How long to wait.
        what: What is waited for, for the error.

    Raises:
        DuplexError: It did not happen in time.
    """
    until_secs = time.monotonic() + secs
    while not condition():
        if time.monotonic() > until_secs:
            raise DuplexError(f"{what} took more than {secs:g} s")
        time.sleep(0.1)
