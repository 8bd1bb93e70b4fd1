from pathlib import Path

import pytest

from benchmarks.engine_overhead import measure


@pytest.mark.slow
async def test_benchmark_runs(checkpoint_folder: Path) -> None:
    """The figure itself needs a quiet machine and a model of real size."""
    overhead = await measure(str(checkpoint_folder), steps=60, rounds=2)
    assert len(overhead.engine_secs) == len(overhead.bare_secs) == 2
    # Far below 1 for so small a model: the engine computes its layers with less Python.
    assert 0 < overhead.ratio < 1
