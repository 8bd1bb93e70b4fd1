"""How the engine's steps went, as plain data."""

from dataclasses import dataclass

import numpy as np

WINDOW_STEPS = 1000


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Figures of the engine's steps; times are of the last ``WINDOW_STEPS`` steps.

    Parameters:
        steps: Steps computed since the engine was loaded.
        frames: Frames in them, over all slots.
        failed_steps: Steps that raised.
        compute_ms_mean: Mean time of a step.
        compute_ms_p50: Median.
        compute_ms_p95: 95th percentile.
        compute_ms_p99: 99th percentile.
        batch_mean: Mean number of slots that ran in a step.
        batch_steps: Steps by number of slots that ran in them.
        batch_ms: Median time of a step, by number of slots that ran in it.
        rebuilds: Long calls that were rebuilt, as often as they were.
        hearing_behind_steps: Steps that the recogniser owes the conversation that waits longest.
        hearing_dropped_steps: Steps of users' voices that it had no time for.
    """

    steps: int
    frames: int
    failed_steps: int
    compute_ms_mean: float
    compute_ms_p50: float
    compute_ms_p95: float
    compute_ms_p99: float
    batch_mean: float
    batch_steps: dict[int, int]
    batch_ms: dict[int, float]
    rebuilds: int = 0
    hearing_behind_steps: int = 0
    hearing_dropped_steps: int = 0


class StepRecorder:
    """Keeps the figures of the last steps in a ring. One thread writes, any may read."""

    def __init__(self):
        """Initialize without steps."""
        self._compute_secs = np.zeros(WINDOW_STEPS)
        self._batches = np.zeros(WINDOW_STEPS, dtype=np.int64)
        self._steps = 0
        self._frames = 0
        self._failed = 0
        self._rebuilds = 0
        self._hearing = (0, 0)

    def add_step(self, compute_secs: float, batch: int) -> None:
        """Record a step that went well."""
        place = self._steps % WINDOW_STEPS
        self._compute_secs[place] = compute_secs
        self._batches[place] = batch
        self._frames += batch
        self._steps += 1

    def add_failure(self) -> None:
        """Record a step that raised."""
        self._failed += 1

    def add_rebuilds(self, count: int) -> None:
        """Record long calls that were rebuilt."""
        self._rebuilds += count

    def note_hearing(self, behind_steps: int, dropped_steps: int) -> None:
        """Record how far the recogniser is, and what it left out since the engine was loaded."""
        self._hearing = (behind_steps, dropped_steps)

    def snapshot(self, last_steps: int = WINDOW_STEPS) -> EngineStats:
        """Return the figures as they are now; all times are 0 before the first step.

        Args:
            last_steps: Take times and batches from this many steps, at most ``WINDOW_STEPS``.
        """
        kept = min(self._steps, WINDOW_STEPS, last_steps)
        places = np.arange(self._steps - kept, self._steps) % WINDOW_STEPS
        compute_ms = self._compute_secs[places] * 1000 if kept else np.zeros(1)
        batches = self._batches[places] if kept else np.zeros(1, dtype=np.int64)
        p50, p95, p99 = np.percentile(compute_ms, [50, 95, 99])
        sizes, counts = np.unique(batches[batches > 0], return_counts=True)
        medians_ms = [float(np.median(compute_ms[batches == size])) for size in sizes]
        return EngineStats(
            steps=self._steps,
            frames=self._frames,
            failed_steps=self._failed,
            compute_ms_mean=float(compute_ms.mean()),
            compute_ms_p50=float(p50),
            compute_ms_p95=float(p95),
            compute_ms_p99=float(p99),
            batch_mean=float(batches.mean()),
            batch_steps=dict(zip(sizes.tolist(), counts.tolist(), strict=True)),
            batch_ms=dict(zip(sizes.tolist(), medians_ms, strict=True)),
            rebuilds=self._rebuilds,
            hearing_behind_steps=self._hearing[0],
            hearing_dropped_steps=self._hearing[1],
        )
