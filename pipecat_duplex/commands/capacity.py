"""How many conversations a machine should hold, by the time that steps of several take.

``doctor`` and ``bench`` use the same figures. ``bench`` then lets real callers show it.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipecat_duplex.session import STEP_SAMPLES, STEP_SECS, DuplexError, MissingExtra, SessionConfig

if TYPE_CHECKING:
    from pipecat_duplex.engine import Engine
    from pipecat_duplex.engine.engine import Runtime
    from pipecat_duplex.engine.model import ModelSummary

WARM_UP_STEPS = 5
MEASURED_STEPS = 50
STEP_TIMEOUT_SECS = 20.0

USABLE_SHARE = 0.8
"""Of the 80 ms of a step. The rest is for Pipecat, the network and bad luck."""

SEVERAL_SLOTS = 4
LARGEST_GROWTH = 6
MOST_SIZES = 5
"""Batches to measure: one, several, and then about as many as should fit, until that is steady."""

STEADY = 1.2
"""A prediction is trusted up to this multiple of the largest measured batch."""

MEMORY_SHARE = 0.9
SLOT_MEMORY = 1.7
"""A conversation's memory on a CPU, as a multiple of its attention memory (10.6 MB for 6.4)."""


@dataclass(frozen=True)
class StepTimes:
    """How long steps take, from sending the audio to having the answer.

    Parameters:
        slots: Conversations that were stepped together.
        median_ms: Half of the steps took at most this long.
        p99_ms: 99 of 100 took at most this long.
    """

    slots: int
    median_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Capacity:
    """Measured step times, and the number of conversations that follows from them.

    Parameters:
        steps: Step times, the smallest batch first.
        by_time: Conversations whose step takes the usable part of 80 ms. ``None`` with fewer than
            two batches.
        by_memory: Conversations that fit into the memory. ``None`` where its size is not known.
        summary: The checkpoint.
    """

    steps: list[StepTimes]
    by_time: int | None
    by_memory: int | None
    summary: "ModelSummary | None"

    @property
    def sessions(self) -> int | None:
        """Conversations at a time, by time and memory; ``None`` if the time is not known."""
        if self.by_time is None or self.by_memory is None:
            return self.by_time
        return min(self.by_time, self.by_memory)


async def measure_capacity(
    checkpoint: str, *, runtime: "Runtime | None" = None, memory_bytes: int | None = None
) -> Capacity:
    """Measure steps of more and more conversations, until it is clear how many fit.

    Args:
        checkpoint: ``embedded``, a hub name or a local folder.
        runtime: What runs the model, in the engine's words.
        memory_bytes: The memory of the device that runs it; ``None`` if it is not known.

    Raises:
        DuplexError: The checkpoint cannot be loaded, or a step of one conversation fails or takes
            longer than :data:`STEP_TIMEOUT_SECS`. What fails with several ends the measurement.
    """
    steps: list[StepTimes] = []
    summary, by_memory, slots = None, None, 1
    while slots:
        try:
            summary, times = await _measure_slots(checkpoint, runtime, slots)
        except MissingExtra:
            raise
        except (DuplexError, RuntimeError, MemoryError) as error:  # torch: out of memory
            if not steps:
                raise DuplexError(" ".join(str(error).split()) or type(error).__name__) from error
            break
        steps.append(times)
        if memory_bytes is not None:
            by_memory = count_by_memory(summary, memory_bytes)
        slots = _next_slots(steps, by_memory)
    return Capacity(steps, count_by_time(steps), by_memory, summary)


async def measure_steps(engine: "Engine", slots: int, steps: int | None = None) -> StepTimes:
    """Measure steps in which every slot takes part, each as soon as the one before is done.

    Args:
        engine: The engine, with that many free slots.
        slots: Conversations to step together.
        steps: Steps to measure, after a few to warm up; :data:`MEASURED_STEPS` by default.

    Raises:
        DuplexError: A step failed, or took longer than :data:`STEP_TIMEOUT_SECS`.
    """
    sessions = [await engine.open(SessionConfig(seed=slot)) for slot in range(slots)]
    answers = [session.steps() for session in sessions]
    noise = np.random.default_rng(0).normal(0, 0.1, STEP_SAMPLES).astype(np.float32)
    took_ms: list[float] = []
    steps = MEASURED_STEPS if steps is None else steps
    try:
        for _ in range(WARM_UP_STEPS + steps):
            started_secs = time.perf_counter()
            for session in sessions:
                session.send(noise)
            async with asyncio.timeout(STEP_TIMEOUT_SECS):
                for answer in answers:
                    await anext(answer)
            took_ms.append(1000 * (time.perf_counter() - started_secs))
    except TimeoutError as error:
        raise DuplexError(f"a step takes more than {STEP_TIMEOUT_SECS:.0f} s here") from error
    finally:
        for session in sessions:
            await session.close()
    median_ms, p99_ms = np.percentile(took_ms[WARM_UP_STEPS:], [50, 99])
    return StepTimes(slots, float(median_ms), float(p99_ms))


def count_by_time(steps: Sequence[StepTimes]) -> int | None:
    """Count the conversations whose step takes the usable part of its 80 ms.

    Between two batches, and beyond the last two, each conversation is taken to cost as much.

    Args:
        steps: Step times, the smallest batch first.

    Returns:
        The number, or ``None`` with fewer than two batches.
    """
    if len(steps) < 2:
        return None
    usable_ms = USABLE_SHARE * 1000 * STEP_SECS
    within = [index for index, times in enumerate(steps) if times.median_ms <= usable_ms]
    last = min(within[-1] if within else 0, len(steps) - 2)
    few, many = steps[last], steps[last + 1]
    each_ms = max(0.01, (many.median_ms - few.median_ms) / (many.slots - few.slots))
    return max(0, int(few.slots + (usable_ms - few.median_ms) / each_ms + 1e-6))


def count_by_memory(summary: "ModelSummary", memory_bytes: int) -> int:
    """Count the conversations that fit into memory beside the weights.

    Args:
        summary: The checkpoint.
        memory_bytes: The memory of the device.
    """
    on_gpu = summary.device.startswith("cuda")
    whole_bytes = 2.0 if summary.dtype == "bfloat16" else 4.0
    lm_bytes = {"int8": 1.0, "int4": 0.6}.get(summary.quantization or "", whole_bytes)
    weights = summary.lm_parameters * lm_bytes + summary.mimi_parameters * 4
    each = max(1.0, summary.kv_bytes_per_slot * (1.0 if on_gpu else SLOT_MEMORY))
    return max(0, int((MEMORY_SHARE * memory_bytes - weights) / each))


async def _measure_slots(
    checkpoint: str, runtime: "Runtime | None", slots: int
) -> "tuple[ModelSummary, StepTimes]":
    from pipecat_duplex.engine import Engine

    engine = await Engine.load(checkpoint, slots=slots, runtime=runtime, tts="own")
    try:
        return engine.summary, await measure_steps(engine, slots)
    finally:
        await engine.close()


def _next_slots(steps: Sequence[StepTimes], by_memory: int | None) -> int:
    """Return how many conversations to measure next; 0 if enough is known."""
    last = steps[-1]
    predicted = SEVERAL_SLOTS if len(steps) == 1 else count_by_time(steps) or 0
    if len(steps) > 1 and (predicted <= STEADY * last.slots or len(steps) == MOST_SIZES):
        return 0
    if len(steps) == 1 and last.median_ms > USABLE_SHARE * 1000 * STEP_SECS:
        return SEVERAL_SLOTS  # what one costs cannot be told from one
    wanted = min(predicted, LARGEST_GROWTH * last.slots)
    if by_memory is not None:
        wanted = min(wanted, by_memory)
    return wanted if wanted > last.slots else 0
