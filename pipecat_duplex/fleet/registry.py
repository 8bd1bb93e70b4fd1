"""The list of workers: they report to it, and bots read it over HTTP."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipecat_duplex.session import DuplexError, MissingExtra

try:
    from aiohttp import web
except ModuleNotFoundError as error:
    raise MissingExtra(
        "a fleet needs aiohttp, which is not installed: pip install 'pipecat-duplex[ray]'"
    ) from error

REPORT_SECS = 1.0
"""Time between two reports of a worker."""

GONE_SECS = 5.0
"""A worker that has not reported for so long is left out."""

STARTING_SECS = 600.0
"""How long cores are kept for a worker that has not reported yet: it loads its weights."""


@dataclass(frozen=True)
class WorkerEntry:
    """What a worker says of itself.

    Parameters:
        name: Its name in the cluster.
        node: The id of its machine in the cluster.
        url: Where it takes calls.
        slots: Calls that it has room for.
        slots_used: Calls at this moment.
        draining: Whether it takes no new ones.
    """

    name: str
    node: str
    url: str
    slots: int
    slots_used: int = 0
    draining: bool = False


class WorkerList:
    """The workers that reported lately. The time is an argument."""

    def __init__(self):
        """Initialize an empty list."""
        self._entries: dict[str, tuple[float, WorkerEntry]] = {}
        self._cores: dict[str, tuple[float, str, tuple[int, ...]]] = {}
        self._left: set[str] = set()

    def report(self, entry: WorkerEntry, now_secs: float) -> None:
        """Note what a worker says of itself; its last report may come after it was taken away."""
        if entry.name in self._left:
            return
        self._entries[entry.name] = (now_secs, entry)

    def leave(self, name: str) -> None:
        """Forget a worker for good: names are not used again."""
        self._left.add(name)
        self._entries.pop(name, None)
        self._cores.pop(name, None)

    def workers(self, now_secs: float) -> list[WorkerEntry]:
        """Return the workers that reported lately, by name."""
        fresh = [each for at, each in self._entries.values() if now_secs - at < GONE_SECS]
        return sorted(fresh, key=lambda entry: entry.name)

    def claim_cores(
        self, name: str, node: str, available: Sequence[int], count: int, now_secs: float
    ) -> tuple[int, ...]:
        """Give a worker cores of its machine that no other worker has.

        Args:
            name: The worker; it gives back what it had.
            node: Its machine.
            available: The machine's cores.
            count: How many it wants.
            now_secs: When.

        Returns:
            The cores; none if there are not so many.
        """
        self._cores.pop(name, None)
        alive = {entry.name for entry in self.workers(now_secs)}
        self._cores = {
            each: claim
            for each, claim in self._cores.items()
            if each in alive or now_secs - claim[0] < STARTING_SECS
        }
        taken = {
            core for _, where, cores in self._cores.values() if where == node for core in cores
        }
        free = sorted(set(available) - taken)[:count]
        if len(free) < count:
            return ()
        self._cores[name] = (now_secs, node, tuple(free))
        return tuple(free)


class Registry:
    """The list as an actor, and over HTTP at ``/workers``. Its methods may be called at once."""

    def __init__(self, host: str, port: int):
        """Initialize and listen.

        Args:
            host: The address to listen on.
            port: The port; 0 takes a free one.
        """
        self._list = WorkerList()
        self._lock = threading.Lock()
        self._site = _Site(self.workers)
        self._site.listen(host, port)

    def port(self) -> int:
        """Return the port that it listens on."""
        return self._site.port

    def report(self, entry: WorkerEntry) -> None:
        """Note what a worker says of itself."""
        with self._lock:
            self._list.report(entry, time.monotonic())

    def leave(self, name: str) -> None:
        """Forget a worker."""
        with self._lock:
            self._list.leave(name)

    def workers(self) -> list[WorkerEntry]:
        """Return the workers that reported lately."""
        with self._lock:
            return self._list.workers(time.monotonic())

    def claim_cores(
        self, name: str, node: str, available: Sequence[int], count: int
    ) -> tuple[int, ...]:
        """Give a worker cores; see :meth:`WorkerList.claim_cores`."""
        with self._lock:
            return self._list.claim_cores(name, node, available, count, time.monotonic())


class _Site:
    """The list over HTTP, in a thread: an actor with coroutines would run one method at a time."""

    def __init__(self, workers: Callable[[], list[WorkerEntry]]):
        self._workers = workers
        self._loop = asyncio.new_event_loop()
        self.port = 0

    def listen(self, host: str, port: int) -> None:
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._listen(host, port), self._loop).result()

    async def _listen(self, host: str, port: int) -> None:
        app = web.Application()
        app.router.add_get("/workers", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, host, port).start()
        except OSError as problem:
            raise DuplexError(f"cannot listen on {host}, port {port}: {problem}") from problem
        self.port = self._runner.addresses[0][1]

    async def _answer(self, _: web.Request) -> web.Response:
        told = [
            {
                "url": entry.url,
                "slots": entry.slots,
                "slots_used": entry.slots_used,
                "draining": entry.draining,
            }
            for entry in self._workers()
        ]
        return web.json_response({"workers": told})
