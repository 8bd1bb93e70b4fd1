"""A fleet on a Ray cluster: start it, see it, scale it, and take machines away from it."""

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loguru import logger

from pipecat_duplex.fleet.options import WorkerOptions
from pipecat_duplex.fleet.registry import Registry, WorkerEntry
from pipecat_duplex.fleet.worker import REGISTRY, FleetWorker, wait_for
from pipecat_duplex.session import DuplexError, MissingExtra, one_line

NAMESPACE = "pipecat-duplex"
WORKER = "worker-"
REGISTRY_PORT = 8990

START_SECS = 900.0
"""How long a worker may take to start: it may have to download its weights."""

PLACE_SECS = 30.0
"""How long the cluster may take to find room for a worker."""


@dataclass(frozen=True)
class FleetStatus:
    """What a fleet is at this moment.

    Parameters:
        registry: The address that bots are given.
        workers: Those that report.
        silent: Names of those that do not: they start, hang, or wait for room.
        nodes: The cluster's machines: id and address.
    """

    registry: str
    workers: list[WorkerEntry]
    silent: list[str]
    nodes: dict[str, str]


class FleetCluster:
    """The fleet of a Ray cluster.

    Example::

        fleet = FleetCluster.connect()
        fleet.up(WorkerOptions(slots=32, gpus=1), workers=4)
        print(fleet.status().registry)  # for DuplexLLMService(url=…)
    """

    def __init__(self, ray: Any):
        """Initialize with a connected Ray.

        Args:
            ray: The module ``ray``, after ``ray.init(namespace="pipecat-duplex")``.
        """
        self._ray = ray

    @classmethod
    def connect(cls, address: str = "auto") -> "FleetCluster":
        """Connect to a cluster.

        Args:
            address: As for ``ray.init``; ``auto`` is the one that runs on this machine.

        Raises:
            MissingExtra: Ray is not installed.
            DuplexError: There is no cluster.
        """
        try:
            import ray
        except ModuleNotFoundError as error:
            raise MissingExtra(
                "a fleet needs ray, which is not installed: pip install 'pipecat-duplex[ray]'"
            ) from error
        if not ray.is_initialized():
            try:
                ray.init(
                    address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR
                )
            except (ConnectionError, RuntimeError, ValueError) as error:
                hint = "start one with `ray start --head`"
                raise DuplexError(f"there is no Ray cluster: {one_line(error)}; {hint}") from error
        return cls(ray)

    def up(
        self, options: WorkerOptions, *, workers: int, registry_port: int = REGISTRY_PORT
    ) -> list[WorkerEntry]:
        """Start a fleet; one that runs is replaced worker by worker, and its calls move.

        Args:
            options: What a worker is.
            workers: How many.
            registry_port: Where bots find the list.

        Raises:
            DuplexError: The cluster has no room, or an engine cannot be loaded.
        """
        self._start_registry(registry_port)
        old = self._worker_names()
        started: list[WorkerEntry] = []
        for _ in range(min(workers, len(old))):
            # A new one first, so that the old one's calls have somewhere to go.
            if self._has_room(options):
                started += self._start(options, 1)
                self._take_away([old.pop(0)])
            else:
                self._take_away([old.pop(0)])
                started += self._start(options, 1)
        self._take_away(old)
        return started + self._start(options, workers - len(started))

    def status(self) -> FleetStatus:
        """Return what the fleet is at this moment.

        Raises:
            DuplexError: There is no fleet.
        """
        ray = self._ray
        registry = self._registry()
        entries: list[WorkerEntry] = ray.get(registry.workers.remote(), timeout=10)
        known = {entry.name for entry in entries}
        return FleetStatus(
            registry=f"http://{self._head_ip()}:{ray.get(registry.port.remote())}/workers",
            workers=entries,
            silent=[name for name in self._worker_names() if name not in known],
            nodes={node["NodeID"]: node["NodeManagerAddress"] for node in self._nodes()},
        )

    def scale(self, workers: int) -> None:
        """Have so many workers: more are started, those with the fewest calls are taken away.

        Args:
            workers: How many.

        Raises:
            DuplexError: There is no worker that others could be made like, or no room.
        """
        names = self._worker_names()
        entries = {entry.name: entry for entry in self.status().workers}
        if workers > len(names):
            self._start(self._options_of(names), workers - len(names))
            return
        # Those that do not report first, then the emptiest.
        used = {name: entries[name].slots_used if name in entries else -1 for name in names}
        self._take_away(sorted(names, key=used.__getitem__)[: len(names) - workers])

    def drain(self, node: str) -> list[str]:
        """Take a machine's workers away; their calls move to others.

        Args:
            node: The machine's address, name, or the beginning of its id in the cluster.

        Returns:
            The names of the workers that were there.

        Raises:
            DuplexError: There is no such machine, or more than one.
        """
        matching = [
            each["NodeID"]
            for each in self._nodes()
            if node in (each["NodeManagerAddress"], each["NodeManagerHostname"])
            or (node and each["NodeID"].startswith(node))
        ]
        if len(matching) != 1:
            known = ", ".join(
                f"{each['NodeID'][:8]} ({each['NodeManagerAddress']})" for each in self._nodes()
            )
            found = "no machine" if not matching else "more than one machine"
            raise DuplexError(f"{found} is meant by {node!r}; there are {known}")
        names = [entry.name for entry in self.status().workers if entry.node == matching[0]]
        self._take_away(names)
        return names

    def down(self) -> None:
        """End the fleet: calls go on where they can for ``drain_secs``, and end."""
        self._take_away(self._worker_names())
        try:
            self._ray.kill(self._registry(), no_restart=True)
        except DuplexError:
            pass

    #
    # workers
    #

    def _start(self, options: WorkerOptions, count: int) -> list[WorkerEntry]:
        """Start workers, all or none."""
        ray = self._ray
        if count < 1:
            return []
        actor = ray.remote(FleetWorker)
        started: list[tuple[str, Any]] = []
        for _ in range(count):
            name = WORKER + secrets.token_hex(3)
            handle = actor.options(
                name=name,
                namespace=NAMESPACE,
                lifetime="detached",
                num_cpus=options.cpus,
                num_gpus=options.gpus,
                scheduling_strategy="SPREAD",
                max_restarts=-1,
                max_concurrency=8,
            ).remote(name, options)
            started.append((name, handle))
        try:
            placed = [handle.options.remote() for _, handle in started]
            ready, waiting = ray.wait(placed, num_returns=count, timeout=PLACE_SECS)
            if waiting:
                raise DuplexError(
                    f"the cluster has room for {len(ready)} of {count} workers with {options.cpus} "
                    f"cores and {options.gpus} GPUs each"
                )
            entries: list[WorkerEntry] = ray.get(
                [handle.wait_until_ready.remote() for _, handle in started], timeout=START_SECS
            )
        except Exception as error:
            for _, handle in started:
                ray.kill(handle, no_restart=True)
            if isinstance(error, DuplexError) and not hasattr(error, "as_instanceof_cause"):
                raise
            cause = getattr(error, "cause", None) or error
            raise DuplexError(f"a worker cannot start: {one_line(cause)}") from error
        self._wait_for_reports({name for name, _ in started})
        return entries

    def _wait_for_reports(self, names: set[str]) -> None:
        registry = self._registry()

        def reported() -> bool:
            entries = self._ray.get(registry.workers.remote(), timeout=10)
            return names <= {entry.name for entry in entries}

        wait_for(reported, 30, "the first report of a worker")

    def _take_away(self, names: Sequence[str]) -> None:
        """Let workers drain, at the same time, and end them."""
        ray = self._ray
        handles = {name: self._worker(name) for name in names}
        draining = {name: handle.drain.remote() for name, handle in handles.items() if handle}
        for name, drained in draining.items():
            try:
                ray.get(drained)
            except Exception as error:
                logger.warning(f"{name} did not drain: {one_line(error)}")
            ray.kill(handles[name], no_restart=True)
            try:
                ray.get(self._registry().leave.remote(name), timeout=10)
            except Exception as error:
                logger.debug(f"the registry still lists {name}: {one_line(error)}")

    def _worker(self, name: str) -> Any:
        try:
            return self._ray.get_actor(name, NAMESPACE)
        except ValueError:
            return None

    def _worker_names(self) -> list[str]:
        named = self._ray.util.list_named_actors(all_namespaces=True)
        names = [each["name"] for each in named if each["namespace"] == NAMESPACE]
        return sorted(name for name in names if name.startswith(WORKER))

    def _options_of(self, names: Sequence[str]) -> WorkerOptions:
        for name in names:
            handle = self._worker(name)
            if handle is not None:
                return self._ray.get(handle.options.remote(), timeout=30)
        raise DuplexError("there is no worker to make others like: start the fleet with `up`")

    def _has_room(self, options: WorkerOptions) -> bool:
        free = self._ray.available_resources()
        return free.get("CPU", 0) >= options.cpus and free.get("GPU", 0) >= options.gpus

    #
    # the registry and the machines
    #

    def _start_registry(self, port: int) -> None:
        """Start the registry on the head node, whose address stays, unless it runs."""
        ray = self._ray
        try:
            self._registry()
            return
        except DuplexError:
            pass
        handle = (
            ray.remote(Registry)
            .options(
                name=REGISTRY,
                namespace=NAMESPACE,
                lifetime="detached",
                num_cpus=0,
                resources={"node:__internal_head__": 0.001},
                max_restarts=-1,
                max_concurrency=16,
            )
            .remote("0.0.0.0", port)
        )
        try:
            ray.get(handle.port.remote(), timeout=60)
        except Exception as error:
            ray.kill(handle, no_restart=True)
            cause = getattr(error, "cause", None) or error
            raise DuplexError(f"the registry cannot start: {one_line(cause)}") from error

    def _registry(self) -> Any:
        try:
            return self._ray.get_actor(REGISTRY, NAMESPACE)
        except ValueError as error:
            raise DuplexError("no fleet runs in this cluster: start one with `up`") from error

    def _nodes(self) -> list[dict]:
        return [node for node in self._ray.nodes() if node["Alive"]]

    def _head_ip(self) -> str:
        for node in self._nodes():
            if "node:__internal_head__" in node["Resources"]:
                return node["NodeManagerAddress"]
        raise DuplexError("the cluster has no head node")
