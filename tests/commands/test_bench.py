"""The load tool: callers by the clock, and what it says of them."""

import json

import numpy as np
import pytest

from pipecat_duplex import DuplexError
from pipecat_duplex.commands.bench import BenchOptions, run_bench
from pipecat_duplex.commands.callers import CallLog, murmur, run_callers
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.session import SAMPLE_RATE_HZ


async def talk(script: Script, callers: int = 3, *, slots: int = 8, **kwargs) -> CallLog:
    backend = ScriptedBackend(script, slots=slots)
    return await run_callers(backend, callers, secs=2.0, speech=murmur(2.0), **kwargs)


async def test_callers_of_a_quick_model_hear_every_step_in_time():
    log = await talk(Script(step_secs=0.005))
    assert log.calls == 3 and not log.errors and not log.lost_steps
    assert log.steps >= 3 * 20
    assert log.late_share < 0.05
    assert np.median(log.delays_secs) > 0.005


async def test_a_stall_is_late_and_a_slow_model_is_ever_later():
    stalled = await talk(Script(step_secs=0.005, stalls={5: 0.5}), 1)
    assert stalled.late_steps >= 3
    slow = await talk(Script(step_secs=0.12), 1)
    assert slow.late_share > 0.5


async def test_refusals_and_failures_are_told():
    log = await talk(Script(step_secs=0.005), 3, slots=1)
    assert log.calls == 1 and log.refused >= 2
    log = await talk(Script(step_secs=0.005, fail_step=5), 1)
    assert any("the script says so" in error for error in log.errors)


async def test_callers_come_and_go(monkeypatch):
    monkeypatch.setattr("pipecat_duplex.commands.callers.STAY_SECS", (0.3, 0.6))
    log = await talk(Script(step_secs=0.005), 2, come_and_go=True)
    assert log.calls > 4 and not log.errors


def test_murmur_has_the_level_of_speech():
    pcm = murmur(3.0)
    assert pcm.dtype == np.float32 and len(pcm) == 3 * SAMPLE_RATE_HZ
    assert 0.01 < np.sqrt(np.mean(pcm**2)) < 0.2 and np.abs(pcm).max() <= 1


@pytest.mark.engine
def test_bench_on_an_engine(tiny_checkpoint, tmp_path, capsys):
    options = BenchOptions(
        callers=(1, 2),
        secs=2.0,
        checkpoint=str(tiny_checkpoint),
        json=tmp_path / "bench.json",
        plot=tmp_path / "bench.png",
    )
    report = run_bench(options)
    assert [load.callers for load in report.loads] == [1, 2]
    assert all(load.steps > 15 and load.step_p50_ms for load in report.loads)
    assert report.prediction is not None and report.prediction.sessions > 1
    assert json.loads(options.json.read_text())["held"] == report.held
    assert options.plot.read_bytes().startswith(b"\x89PNG")
    assert "measured:" in capsys.readouterr().out


def test_bad_loads_are_refused():
    with pytest.raises(DuplexError, match="--callers"):
        run_bench(BenchOptions(callers=(0,)))
