"""The load tool: callers by the clock, and what it says of them."""

import asyncio
import functools
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from pipecat_duplex import DuplexError
from pipecat_duplex.commands.bench.bench import (
    MOST_CALLERS,
    BenchOptions,
    BenchReport,
    find_held,
    run_bench,
)
from pipecat_duplex.commands.bench.callers import CallLog, murmur, run_callers
from pipecat_duplex.commands.bench.load import Load, LoadOptions
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.session import SAMPLE_RATE_HZ
from tests.server.callers import chat_url, serving
from tests.stalls import by_the_clock


async def talk(
    script: Script, callers: int = 3, *, slots: int = 8, warm_up: float = 0, **kwargs
) -> CallLog:
    backend = ScriptedBackend(script, slots=slots)
    return await run_callers(
        backend, callers, secs=2.0, speech=murmur(2.0), warm_up_secs=warm_up, **kwargs
    )


@pytest.mark.slow
@by_the_clock
async def test_callers_of_a_quick_model_hear_every_step_in_time():
    log = await talk(Script(step_secs=0.005))
    assert log.calls == 3 and not log.errors and not log.lost_steps
    assert log.steps >= 3 * 20
    assert log.late_share(0.5) < 0.05
    assert np.median(log.delays_secs) > 0.005
    assert len(log.lags_secs) == log.steps and min(log.lags_secs) >= 0


@pytest.mark.slow
@by_the_clock
async def test_a_stall_is_late_and_a_slow_model_is_ever_later():
    stalled = await talk(Script(step_secs=0.005, stalls={5: 0.5}), 1)
    assert stalled.late_share() >= 3 / stalled.steps
    slow = await talk(Script(step_secs=0.12), 1)
    assert slow.late_share() > 0.5
    assert slow.late_share(playout_secs=60) == slow.lost_steps / slow.steps


def test_late_is_late_by_the_clock_whatever_came_first():
    log = CallLog(delays_secs=[0.02, 0.1, 0.15, 0.17], lost_steps=1)
    assert log.late_share() == 2 / 5
    assert log.late_share(0.09) == 4 / 5


@pytest.mark.slow
@by_the_clock
async def test_the_beginning_is_not_counted():
    log = await talk(Script(step_secs=0.005, stalls={0: 0.5}), 1, warm_up=1.0)
    assert 15 < log.steps <= 25 and log.late_share(0.4) == 0


@pytest.mark.slow
async def test_refusals_and_failures_are_told():
    log = await talk(Script(step_secs=0.005), 3, slots=1)
    assert log.calls == 1 and log.refused >= 2
    log = await talk(Script(step_secs=0.005, fail_step=5), 1)
    assert any("the script says so" in error for error in log.errors)


@pytest.mark.slow
@by_the_clock
async def test_callers_come_and_go(monkeypatch):
    monkeypatch.setattr("pipecat_duplex.commands.bench.callers.STAY_SECS", (0.3, 0.6))
    monkeypatch.setattr("pipecat_duplex.commands.bench.callers.AWAY_SECS", (0, 0.1))
    log = await talk(Script(step_secs=0.005), 2, come_and_go=True)
    assert log.calls > 4 and not log.errors


def test_murmur_has_the_level_of_speech():
    pcm = murmur(3.0)
    assert pcm.dtype == np.float32 and len(pcm) == 3 * SAMPLE_RATE_HZ
    assert 0.01 < np.sqrt(np.mean(pcm**2)) < 0.2 and np.abs(pcm).max() <= 1


def fake_load(options: LoadOptions, *, held: bool, memory_mb: float | None = None) -> Load:
    return Load(
        callers=options.callers,
        secs=options.secs,
        steps=100,
        late_share=0.0 if held else 0.5,
        delay_p50_ms=30.0,
        delay_p95_ms=40.0,
        delay_p99_ms=50.0,
        step_p50_ms=None,
        step_p99_ms=None,
        batch_mean=None,
        batch_ms={},
        memory_mb=memory_mb,
        model_cpu_cores=None,
        callers_cpu_cores=0.1,
        callers_lag_ms=1.0,
        calls=options.callers,
        refused=0,
        errors=[],
    )


@pytest.mark.parametrize("capacity", [0, 1, 3, 4, 11, 40, 5000])
def test_the_search_finds_what_is_held(capacity):
    tried: list[LoadOptions] = []

    def measure(options: LoadOptions) -> Load:
        tried.append(options)
        return fake_load(options, held=options.callers <= capacity)

    found = find_held(LoadOptions(callers=4, secs=10), measure)
    assert found <= capacity and found >= min(capacity, MOST_CALLERS) * (1 - 1 / 16) - 1
    assert len(tried) < 20
    if found:
        assert (tried[-1].callers, tried[-1].secs) == (found, 30)


def test_what_is_not_held_for_long_is_not_held():
    def measure(options: LoadOptions) -> Load:
        return fake_load(options, held=options.callers <= (20 if options.secs < 20 else 15))

    assert find_held(LoadOptions(callers=4, secs=10), measure) == 15


def test_a_refused_caller_is_not_held():
    good = fake_load(LoadOptions(callers=4), held=True)
    assert good.held
    for change in ({"refused": 1}, {"errors": ["x"]}, {"steps": 0}, {"late_share": 0.02}):
        assert not replace(good, **change).held


def test_memory_a_session_is_the_growth():
    report = BenchReport("x", 160)
    assert report.memory_mb_per_session is None
    for callers in (1, 11):
        load = fake_load(LoadOptions(callers=callers), held=True, memory_mb=500 + 3 * callers)
        report.loads.append(load)
    assert report.memory_mb_per_session == pytest.approx(3)


@pytest.mark.slow
async def test_bench_on_a_server(tmp_path):
    async with serving(slots=3) as server:
        options = BenchOptions(callers=(2, 4), secs=2.0, url=chat_url(server), playout_ms=1000)
        report = await asyncio.to_thread(run_bench, options)
    assert report.held == 2 and report.prediction is None and report.sessions_by_steps is None
    few, many = report.loads
    assert few.steps > 30 and few.callers_cpu_cores > 0 and few.model_cpu_cores is None
    assert few.step_p50_ms is not None  # told in raw audio
    assert many.refused and not many.held


@pytest.mark.slow
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
    assert all(load.model_cpu_cores and load.batch_ms for load in report.loads)
    assert report.prediction is not None and report.prediction.sessions > 1
    assert report.sessions_by_steps is not None
    assert options.json is not None and options.plot is not None
    written = json.loads(options.json.read_text())
    assert written["held"] == report.held and len(written["loads"]) == 2
    assert options.plot.read_bytes().startswith(b"\x89PNG")
    assert "measured:" in capsys.readouterr().out


def refuses_before_it_measures(monkeypatch, message: str, **options) -> None:
    def measure(load: LoadOptions) -> Load:
        raise AssertionError("something was measured")

    monkeypatch.setattr("pipecat_duplex.commands.bench.bench.measure_load", measure)
    with pytest.raises(DuplexError, match=message):
        run_bench(BenchOptions(**options))


def test_bad_options_are_refused_before_anything_is_measured(monkeypatch, tmp_path):
    refuse = functools.partial(refuses_before_it_measures, monkeypatch)
    refuse("--callers", callers=(0,))
    refuse("there is no folder", json=tmp_path / "nowhere" / "x")
    refuse("there is no folder", plot=tmp_path / "nowhere" / "x")
    refuse("two things", json=tmp_path / "x", plot=tmp_path / "x")
    refuse("there is no file", speech=tmp_path / "nowhere.wav")
    refuse("ws://", url="gopher://nowhere")
    soundfile.write(tmp_path / "short.wav", np.zeros(100), 24_000)
    refuse("0.08 s", speech=tmp_path / "short.wav")


def test_a_plot_without_matplotlib_is_refused_before(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refuses_before_it_measures(monkeypatch, r"pipecat-duplex\[plot\]", plot=tmp_path / "x.png")


@pytest.mark.parametrize(
    "error",
    [
        OSError(30, "read-only"),
        FileNotFoundError(2, "no"),
        PermissionError(13, "no"),
        ImportError("no semaphores"),
    ],
)
def test_without_shared_memory_it_says_what_to_do(monkeypatch, error: Exception):
    def make(*args, **kwargs):
        raise error

    monkeypatch.setattr("pipecat_duplex.commands.bench.load.ProcessPoolExecutor", make)
    with pytest.raises(DuplexError, match="/dev/shm"):
        run_bench(BenchOptions(callers=(1,), secs=2.0))


def test_the_key_of_a_server_is_told_nobody():
    options = BenchOptions(url="wss://me:pass@gpu:8998/api/chat?token=secret", api_key="secret")
    assert options.target == "gpu:8998"
    assert "secret" not in repr(options.load(1, None)).replace(options.url or "", "")
