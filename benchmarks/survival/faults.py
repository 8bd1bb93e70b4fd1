"""What is done to workers while calls are running."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence

from benchmarks.survival.workers import Worker

AWAY_SECS = 5.0
"""How long a worker is stopped or cut off, and how long a dead one is away at least."""


async def kill(worker: Worker) -> None:
    """The process dies at once, as with a crash, and is started again."""
    worker.signal(signal.SIGKILL)
    await worker.wait()
    await asyncio.sleep(AWAY_SECS)
    await worker.start()


async def terminate(worker: Worker) -> None:
    """The process is asked to stop, as in an upgrade, and is started again."""
    worker.signal(signal.SIGTERM)
    await worker.wait()
    await worker.start()


async def stop(worker: Worker) -> None:
    """The process stands still, as with a hanging GPU or a machine that swaps."""
    worker.signal(signal.SIGSTOP)
    await asyncio.sleep(AWAY_SECS)
    worker.signal(signal.SIGCONT)


async def cut(worker: Worker) -> None:
    """The network to the worker drops everything, and nobody is told."""
    worker.line.cut()
    await asyncio.sleep(AWAY_SECS)
    worker.line.mend()


async def fill_disk(worker: Worker) -> None:
    """The process is started anew, and its log goes to a disk that is full."""
    worker.output = "/dev/full"
    await terminate(worker)


async def none(worker: Worker) -> None:
    """Nothing happens: the level that faults are measured against."""


FAULTS: dict[str, Callable[[Worker], Awaitable[None]]] = {
    "none": none,
    "kill": kill,
    "term": terminate,
    "stop": stop,
    "cut": cut,
    "disk": fill_disk,
}


async def disturb(
    workers: Sequence[Worker], fault: str, *, every_secs: float, secs: float
) -> list[tuple[float, str]]:
    """Do something to one worker after another, until the time is over.

    A worker that is not back yet is passed over: one at a time is away for long.

    Args:
        workers: The workers, in turns.
        fault: One of :data:`FAULTS`.
        every_secs: Time between two faults.
        secs: The length of it all.

    Returns:
        When (loop time) which address was hit.
    """
    loop = asyncio.get_running_loop()
    began_secs = loop.time()
    done: list[tuple[float, str]] = []
    running: dict[int, asyncio.Task[None]] = {}
    turn = 0
    while loop.time() - began_secs + every_secs < secs:
        await asyncio.sleep(every_secs)
        free = [n for n in range(len(workers)) if n not in running or running[n].done()]
        if len(free) < len(workers):
            continue  # Somebody must be left to take the calls.
        worker = workers[turn % len(workers)]
        running[turn % len(workers)] = asyncio.ensure_future(_run(FAULTS[fault], worker))
        done.append((loop.time(), worker.url))
        turn += 1
    await asyncio.gather(*running.values())
    return done


async def _run(fault: Callable[[Worker], Awaitable[None]], worker: Worker) -> None:
    await fault(worker)
