"""One load: so many callers for so long, measured in processes that do nothing else."""

import asyncio
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from loguru import logger

from pipecat_duplex.commands.bench.callers import (
    PLAYOUT_SECS,
    WARM_UP_SECS,
    CallLog,
    murmur,
    run_callers,
)
from pipecat_duplex.session import DuplexError

if TYPE_CHECKING:
    from pipecat_duplex.engine.engine import Runtime

MAX_LATE_SHARE = 0.01
"""A load is held in real time if no more than this share of the steps is late."""

MAX_LAG_MS = 20.0
"""Callers who are later than this themselves, in a step of a hundred, cannot judge others."""

CALLERS_PER_PROCESS = 32
"""Callers of a server are spread over processes, so that no single core limits them."""

START_SECS = 3.0
"""Time for the processes of the callers to get ready, so that they begin together."""


@dataclass(frozen=True)
class LoadOptions:
    """What a load is.

    Parameters:
        callers: Conversations at a time.
        secs: How long they are watched, after warming up.
        checkpoint: The model, run in a process together with the callers.
        runtime: What runs the model, in the engine's words.
        url: A server to call instead.
        api_key: Shown to the server.
        speech: What the callers say, float32, 24 kHz; a murmur if None.
        come_and_go: Whether callers hang up and call again.
        playout_ms: When a caller's player plays an answer, counted from the end of the step.
    """

    callers: int
    secs: float = 30.0
    checkpoint: str = "embedded"
    runtime: "Runtime | None" = None
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    speech: np.ndarray | None = field(default=None, repr=False, compare=False)
    come_and_go: bool = True
    playout_ms: float = 1000 * PLAYOUT_SECS


@dataclass(frozen=True)
class Load:
    """One load, in figures.

    Parameters:
        callers: Conversations at a time.
        secs: How long they were watched.
        steps: Steps that were spoken.
        late_share: Share of them at whose time the caller's player had nothing to play.
        delay_p50_ms: Half of the answers came at most this long after the step was spoken.
        delay_p95_ms: 95 of 100.
        delay_p99_ms: 99 of 100.
        step_p50_ms: Median computing time of a step; None if the server does not tell it.
        step_p99_ms: Its 99th percentile.
        batch_mean: Conversations in a step of the engine, on average; None for a server.
        batch_ms: Median computing time of a step, by the conversations in it.
        memory_mb: Resident memory of the engine's process, and memory of its GPU.
        model_cpu_cores: Processor time of the engine, in cores.
        callers_cpu_cores: Processor time that the callers took themselves, in cores.
        callers_lag_ms: How late 1 of 100 steps was sent, through no fault of the model's.
        calls: Calls that were taken.
        refused: Calls that were refused.
        errors: Why calls ended that should not have.
    """

    callers: int
    secs: float
    steps: int
    late_share: float
    delay_p50_ms: float
    delay_p95_ms: float
    delay_p99_ms: float
    step_p50_ms: float | None
    step_p99_ms: float | None
    batch_mean: float | None
    batch_ms: dict[int, float]
    memory_mb: float | None
    model_cpu_cores: float | None
    callers_cpu_cores: float
    callers_lag_ms: float
    calls: int
    refused: int
    errors: list[str]

    @property
    def held(self) -> bool:
        """Whether every caller was served in real time."""
        return (
            not self.errors
            and not self.refused
            and self.steps > 0
            and self.late_share <= MAX_LATE_SHARE
        )


@dataclass
class _Part:
    """What one process saw of a load."""

    log: CallLog
    callers_cpu_cores: float
    batch_mean: float | None = None
    batch_ms: dict[int, float] = field(default_factory=dict)
    memory_mb: float | None = None
    model_cpu_cores: float | None = None


def keep_quiet() -> None:
    """Let only what went wrong into the log of this process."""
    logger.remove()
    logger.add(sys.stderr, level="WARNING", format="{level}: {message}")


def fresh_processes(number: int) -> ProcessPoolExecutor:
    """Return processes that have nothing of this one.

    Args:
        number: How many.

    Raises:
        DuplexError: The system has no shared memory for them.
    """
    context = multiprocessing.get_context("spawn")
    try:
        return ProcessPoolExecutor(number, context, initializer=keep_quiet)
    except (ImportError, OSError, NotImplementedError) as error:
        raise DuplexError(
            "the callers run in processes of their own, which need semaphores in shared memory, "
            f"and this system has none ({error}): mount a writable /dev/shm, such as with "
            "'docker run --shm-size=64m'"
        ) from error


def measure_load(options: LoadOptions) -> Load:
    """Measure a load. Blocks.

    The engine and its callers share a fresh process, as an engine and its bots would; callers of a
    server have processes of their own.

    Args:
        options: What the load is.

    Raises:
        DuplexError: The checkpoint or the server's address is not good, or there can be no
            processes.
    """
    if options.url is None:
        shares, measure = [options.callers], _measure_engine
    else:
        processes = -(-options.callers // CALLERS_PER_PROCESS)
        shares = [len(s) for s in np.array_split(np.arange(options.callers), processes)]
        measure = _measure_server
    start_time = time.time() + START_SECS
    with fresh_processes(len(shares)) as processes:
        futures = [
            processes.submit(measure, options, share, number, start_time)
            for number, share in enumerate(shares)
        ]
        parts = [future.result() for future in futures]
    return _summarize(options, parts)


def _measure_engine(options: LoadOptions, callers: int, seed: int, start_time: float) -> _Part:
    return asyncio.run(_run_engine(options, callers, seed))


async def _run_engine(options: LoadOptions, callers: int, seed: int) -> _Part:
    from pipecat_duplex.engine import Engine

    engine = await Engine.load(
        options.checkpoint, slots=callers, runtime=options.runtime, tts="own"
    )
    try:
        started = time.monotonic(), time.process_time(), time.thread_time()
        log = await _run_callers(engine, options, callers, seed)
        wall, process, thread = (
            now - then
            for now, then in zip(
                (time.monotonic(), time.process_time(), time.thread_time()), started, strict=True
            )
        )
        stats = engine.stats()
        # This thread carries the callers; the engine has threads of its own.
        return _Part(
            log,
            callers_cpu_cores=thread / wall,
            batch_mean=stats.batch_mean,
            batch_ms=stats.batch_ms,
            memory_mb=_measure_memory_mb(engine.summary.device),
            model_cpu_cores=(process - thread) / wall,
        )
    finally:
        await engine.close()


def _measure_server(options: LoadOptions, callers: int, seed: int, start_time: float) -> _Part:
    return asyncio.run(_run_server(options, callers, seed, start_time))


async def _run_server(options: LoadOptions, callers: int, seed: int, start_time: float) -> _Part:
    from pipecat_duplex.remote import one_server

    assert options.url is not None
    backend = one_server(options.url, api_key=options.api_key)
    await asyncio.sleep(max(0.0, start_time - time.time()))
    started_secs, cpu_secs = time.monotonic(), time.process_time()
    try:
        log = await _run_callers(backend, options, callers, seed)
    finally:
        await backend.close()
    cpu_cores = (time.process_time() - cpu_secs) / (time.monotonic() - started_secs)
    return _Part(log, callers_cpu_cores=cpu_cores)


async def _run_callers(backend, options: LoadOptions, callers: int, seed: int) -> CallLog:
    speech = murmur() if options.speech is None else options.speech
    return await run_callers(
        backend,
        callers,
        secs=options.secs,
        speech=speech,
        come_and_go=options.come_and_go,
        warm_up_secs=WARM_UP_SECS,
        seed=seed,
    )


def _measure_memory_mb(device: str) -> float | None:
    """Return this process's resident memory plus its GPU memory; None where that is unknown."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    memory = pages * os.sysconf("SC_PAGE_SIZE")
    if device.startswith("cuda"):
        import torch

        memory += torch.cuda.memory_allocated(device)
    return memory / 1e6


def _summarize(options: LoadOptions, parts: list[_Part]) -> Load:
    first, *others = parts
    log = first.log
    for part in others:
        log.add(part.log)
    p50, p95, p99 = _percentiles_ms(log.delays_secs, 50, 95, 99)
    told_secs = [secs for secs in log.compute_secs if secs > 0]
    step_p50, step_p99 = _percentiles_ms(told_secs, 50, 99) if told_secs else (None, None)
    return Load(
        callers=options.callers,
        secs=options.secs,
        steps=log.steps,
        late_share=log.late_share(options.playout_ms / 1000),
        delay_p50_ms=p50,
        delay_p95_ms=p95,
        delay_p99_ms=p99,
        step_p50_ms=step_p50,
        step_p99_ms=step_p99,
        batch_mean=first.batch_mean,
        batch_ms=first.batch_ms,
        memory_mb=first.memory_mb,
        model_cpu_cores=first.model_cpu_cores,
        callers_cpu_cores=sum(part.callers_cpu_cores for part in parts),
        callers_lag_ms=_percentiles_ms(log.lags_secs, 99)[0],
        calls=log.calls,
        refused=log.refused,
        errors=log.errors[:5],
    )


def _percentiles_ms(secs: list[float], *ranks: float) -> list[float]:
    return [1000 * float(value) for value in np.percentile(secs or [np.nan], ranks)]
