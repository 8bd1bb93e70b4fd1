"""What a machine should hold, from the time that steps of several conversations take."""

from collections.abc import Callable

import pytest

from pipecat_duplex.commands import capacity
from pipecat_duplex.commands.capacity import (
    MOST_SIZES,
    StepTimes,
    count_by_memory,
    count_by_time,
    measure_capacity,
)
from pipecat_duplex.engine.model import ModelSummary
from pipecat_duplex.session import DuplexError, MissingExtra
from pipecat_duplex.session.contract import Sampling


def summary(device: str = "cpu", dtype: str = "float32", **changes) -> ModelSummary:
    about = dict(
        name="x",
        trained=True,
        lm_parameters=10**6,
        mimi_parameters=10**6,
        context_steps=100,
        runtime="onnx",
        device=device,
        dtype=dtype,
        kv_bytes_per_slot=2**20,
        sampling=Sampling(0.8, 25, 0.8, 250),
        fingerprint="x",
        text_tokens=10,
        audio_tokens=10,
    )
    return ModelSummary(**(about | changes))


def times(median_ms: dict[int, float]) -> list[StepTimes]:
    return [StepTimes(slots, ms, ms) for slots, ms in median_ms.items()]


@pytest.mark.parametrize(
    ("median_ms", "sessions"),
    [
        ({1: 20, 4: 26}, 23),  # 18 ms for every step and 2 ms for each: (64 - 18) / 2
        ({1: 20, 4: 26, 23: 45}, 42),  # beyond the last two, each costs 1 ms
        ({1: 20, 4: 26, 64: 86}, 42),  # between the last two, each costs 1 ms
        ({1: 20, 4: 84, 8: 100}, 3),
        ({1: 300, 4: 600}, 0),
        ({1: 20}, None),
        ({}, None),
    ],
)
def test_sessions_by_time(median_ms: dict[int, float], sessions: int | None):
    assert count_by_time(times(median_ms)) == sessions


def test_sessions_by_memory():
    assert count_by_memory(summary(kv_bytes_per_slot=2**28), 2**30) == 2
    assert count_by_memory(summary("cuda:0", "bfloat16", kv_bytes_per_slot=2**28), 2**30) == 3
    assert count_by_memory(summary(kv_bytes_per_slot=2**28), 2**20) == 0
    large = dict(lm_parameters=7 * 10**9, kv_bytes_per_slot=2**30)
    counts = [
        count_by_memory(summary("cuda:0", "bfloat16", quantization=kind, **large), 24 * 2**30)
        for kind in (None, "int8", "int4")
    ]
    assert counts == sorted(counts) and counts[0] < counts[2]


class Machine:
    """A machine on which a step takes as long as it is told."""

    def __init__(self, step_ms: Callable[[int], float], fails_from: int = 10**9):
        self._step_ms = step_ms
        self._fails_from = fails_from
        self.measured: list[int] = []

    async def measure(self, checkpoint, runtime, slots: int):
        self.measured.append(slots)
        if slots >= self._fails_from:
            raise RuntimeError("out of memory")
        return summary(), StepTimes(slots, self._step_ms(slots), self._step_ms(slots))


async def measured(monkeypatch, machine: Machine, memory_bytes: int | None = None):
    monkeypatch.setattr(capacity, "_measure_slots", machine.measure)
    return await measure_capacity("x", memory_bytes=memory_bytes)


@pytest.mark.parametrize(
    "step_ms",
    [
        lambda n: 5 + 2.0 * n,
        lambda n: 5 + 0.1 * n,
        lambda n: 40 + 0.5 * n,
        lambda n: 5 + 2.5 * min(n, 4) + 0.7 * max(n - 4, 0),  # the first four share badly
        lambda n: 7 + 0.2 * n + 0.004 * n * n,  # memory gets slower and slower
        lambda n: 63.0 + n,
    ],
)
async def test_what_is_predicted_takes_the_usable_time(monkeypatch, step_ms):
    machine = Machine(step_ms)
    found = await measured(monkeypatch, machine)
    right = max(n for n in range(2000) if step_ms(n) <= 64)
    assert found.sessions == pytest.approx(right, rel=0.2, abs=1)
    assert len(machine.measured) <= MOST_SIZES
    assert max(machine.measured) <= max(4, 1.5 * right)


async def test_memory_bounds_what_is_tried(monkeypatch):
    machine = Machine(lambda n: 5 + 0.5 * n)
    found = await measured(monkeypatch, machine, 64 * 2**20)
    assert found.by_memory is not None
    assert max(machine.measured) <= found.by_memory == found.sessions < 40


async def test_what_fails_with_several_ends_the_measurement(monkeypatch):
    found = await measured(monkeypatch, Machine(lambda n: 5 + 0.5 * n, fails_from=20))
    assert [t.slots for t in found.steps] == [1, 4] and found.sessions == 118
    with pytest.raises(DuplexError, match="out of memory"):
        await measured(monkeypatch, Machine(lambda n: 5, fails_from=1))


async def test_a_missing_extra_is_told(monkeypatch):
    async def measure(*args):
        raise MissingExtra("pip install it")

    monkeypatch.setattr(capacity, "_measure_slots", measure)
    with pytest.raises(MissingExtra):
        await measure_capacity("x")
