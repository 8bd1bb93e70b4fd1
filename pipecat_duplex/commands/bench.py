"""``bench``: how many conversations an engine or a server holds in real time."""

import asyncio
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console
from rich.table import Table

from pipecat_duplex.commands.audio_file import read_audio
from pipecat_duplex.commands.callers import murmur, run_callers
from pipecat_duplex.session import STEP_SECS, DuplexBackend, DuplexError

if TYPE_CHECKING:
    from pipecat_duplex.engine import Engine
    from pipecat_duplex.engine.checkpoint import CheckpointSummary

MAX_LATE_SHARE = 0.01
"""A load is held in real time if no more than this share of the steps is late."""


@dataclass(frozen=True)
class BenchOptions:
    """What ``bench`` is asked for.

    Parameters:
        callers: Loads to try, one after another.
        secs: Length of each.
        checkpoint: The model, run in this process.
        url: A server to call instead.
        speech: What the callers say; a murmur if None.
        come_and_go: Whether callers hang up and call again.
        json: Where the figures go.
        plot: Where the picture goes.
    """

    callers: tuple[int, ...] = (1, 4, 8, 16)
    secs: float = 20.0
    checkpoint: str = "embedded"
    url: str | None = None
    speech: Path | None = None
    come_and_go: bool = False
    json: Path | None = None
    plot: Path | None = None


@dataclass(frozen=True)
class Load:
    """One load, in figures.

    Parameters:
        callers: Conversations at a time.
        steps: Steps that were spoken.
        late_share: Share of them that was answered late or not at all.
        delay_p50_ms: Half of the answers came at most this long after the step was spoken.
        delay_p95_ms: 95 of 100.
        delay_p99_ms: 99 of 100.
        step_p50_ms: Median computing time of a step of the engine; None for a server.
        step_p99_ms: Its 99th percentile.
        batch_mean: Conversations in a step, on average.
        cpu_cores: Processor time of this process for each second, in cores.
        callers_cpu_cores: The part of it that the callers took.
        calls: Calls that were taken.
        refused: Calls that were refused.
        errors: Why calls ended that should not have.
    """

    callers: int
    steps: int
    late_share: float
    delay_p50_ms: float
    delay_p95_ms: float
    delay_p99_ms: float
    step_p50_ms: float | None
    step_p99_ms: float | None
    batch_mean: float | None
    cpu_cores: float
    callers_cpu_cores: float
    calls: int
    refused: int
    errors: list[str]

    @property
    def held(self) -> bool:
        """Whether the load was held in real time."""
        return not self.errors and self.steps > 0 and self.late_share <= MAX_LATE_SHARE


@dataclass(frozen=True)
class Prediction:
    """What the device should carry by its bandwidth and its arithmetic.

    Parameters:
        bandwidth_gb_per_sec: Measured, reading memory.
        gflops: Measured, multiplying matrices.
        weights_mb: Read once a step, whoever listens.
        kv_mb_per_session: Attention memory of a conversation, read as far as it is filled.
        sessions: Conversations whose step fits into 80 ms by both.
        by_bandwidth: By the bandwidth alone.
        by_arithmetic: By the arithmetic alone.
    """

    bandwidth_gb_per_sec: float
    gflops: float
    weights_mb: float
    kv_mb_per_session: float
    sessions: int
    by_bandwidth: int
    by_arithmetic: int


@dataclass
class BenchReport:
    """What was measured, beside what was predicted."""

    target: str
    secs: float
    loads: list[Load] = field(default_factory=list)
    prediction: Prediction | None = None

    @property
    def held(self) -> int:
        """The largest load that was held in real time."""
        return max((load.callers for load in self.loads if load.held), default=0)


def run_bench(options: BenchOptions) -> BenchReport:
    """Measure, print, and write what was asked for.

    Args:
        options: What is asked for.

    Raises:
        DuplexError: The checkpoint, the server, the speech or a place to write is not good.
    """
    if not options.callers or min(options.callers) < 1:
        raise DuplexError("--callers takes numbers from 1 on")
    console = Console()
    report = asyncio.run(_bench(options, Console(stderr=True)))
    _print(console, report)
    if options.json:
        data = asdict(report) | {"held": report.held}
        options.json.write_text(json.dumps(data, indent=2) + "\n")
    if options.plot:
        _plot(report, options.plot)
    return report


async def _bench(options: BenchOptions, screen: Console) -> BenchReport:
    speech = murmur() if options.speech is None else read_audio(options.speech).pcm
    if options.url is not None:
        from pipecat_duplex.remote import RemoteBackend

        backend: DuplexBackend = RemoteBackend(options.url)
        report = BenchReport(options.url, options.secs)
        engine = None
    else:
        from pipecat_duplex.engine import Engine

        engine = await Engine.load(options.checkpoint, slots=max(options.callers))
        backend = engine
        report = BenchReport(options.checkpoint, options.secs)
    try:
        for callers in options.callers:
            with screen.status(f"{callers} callers for {options.secs:g} s"):
                report.loads.append(await _measure(backend, engine, callers, speech, options))
        if engine is not None:
            report.prediction = await asyncio.to_thread(predict, engine.summary)
    finally:
        await backend.close()
    return report


async def _measure(
    backend: DuplexBackend,
    engine: "Engine | None",
    callers: int,
    speech: np.ndarray,
    options: BenchOptions,
) -> Load:
    steps_before = engine.stats().steps if engine is not None else 0
    started = time.monotonic(), time.process_time(), time.thread_time()
    log = await run_callers(
        backend, callers, secs=options.secs, speech=speech, come_and_go=options.come_and_go
    )
    wall, process, thread = (
        now - then
        for now, then in zip(
            (time.monotonic(), time.process_time(), time.thread_time()), started, strict=True
        )
    )
    stats = engine.stats(engine.stats().steps - steps_before) if engine is not None else None
    delays_ms = 1000 * np.array(log.delays_secs or [float("nan")])
    p50, p95, p99 = np.percentile(delays_ms, [50, 95, 99])
    return Load(
        callers=callers,
        steps=log.steps,
        late_share=log.late_share,
        delay_p50_ms=float(p50),
        delay_p95_ms=float(p95),
        delay_p99_ms=float(p99),
        step_p50_ms=stats.compute_ms_p50 if stats else None,
        step_p99_ms=stats.compute_ms_p99 if stats else None,
        batch_mean=stats.batch_mean if stats else None,
        cpu_cores=process / wall,
        callers_cpu_cores=thread / wall,
        calls=log.calls,
        refused=log.refused,
        errors=log.errors[:5],
    )


def predict(summary: "CheckpointSummary") -> Prediction:
    """Predict what a device carries from the checkpoint's sizes.

    Every weight is read once a step; each conversation reads its attention memory, half filled on
    average. A weight is two operations (multiply and add) for each conversation. What the step
    costs beyond that is not arithmetic.

    Args:
        summary: The checkpoint, on its device.
    """
    import torch

    bytes_each = torch.finfo(getattr(torch, summary.dtype)).bits // 8
    weights = summary.lm_parameters * bytes_each + summary.mimi_parameters * 4
    operations = 2 * (summary.lm_parameters + summary.mimi_parameters)
    bandwidth, flops = _measure_device(summary.device, getattr(torch, summary.dtype))
    kv = max(1, summary.kv_bytes_per_slot / 2)
    by_bandwidth = max(0, int((bandwidth * STEP_SECS - weights) / kv))
    by_arithmetic = int(flops * STEP_SECS / operations)
    return Prediction(
        bandwidth_gb_per_sec=bandwidth / 1e9,
        gflops=flops / 1e9,
        weights_mb=weights / 1e6,
        kv_mb_per_session=summary.kv_bytes_per_slot / 1e6,
        sessions=min(by_bandwidth, by_arithmetic),
        by_bandwidth=by_bandwidth,
        by_arithmetic=by_arithmetic,
    )


def _measure_device(device: str, dtype) -> tuple[float, float]:
    """Return the bytes a second that can be read and the operations a second, at their best."""
    import torch

    def best_secs(work) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            work()
            if device.startswith("cuda"):
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return min(times[1:])

    with torch.inference_mode():
        memory = torch.ones(64 * 2**20, device=device)
        bandwidth = memory.nbytes / best_secs(memory.sum)
        side = 4096 if device.startswith("cuda") else 1024
        matrix = torch.ones(side, side, device=device, dtype=dtype)
        flops = 2 * side**3 / best_secs(lambda: matrix @ matrix)
    return bandwidth, flops


def _print(console: Console, report: BenchReport) -> None:
    table = Table(
        title=f"{report.target}, {report.secs:g} s each; times in ms: median / 95 % / 99 %"
    )
    for name in ("callers", "late", "delay", "step", "batch", "cores (callers')", ""):
        table.add_column(name, justify="right")
    for load in report.loads:
        table.add_row(
            str(load.callers),
            f"{100 * load.late_share:.1f} %",
            f"{load.delay_p50_ms:.0f} / {load.delay_p95_ms:.0f} / {load.delay_p99_ms:.0f}",
            "" if load.step_p50_ms is None else f"{load.step_p50_ms:.0f} / {load.step_p99_ms:.0f}",
            "" if load.batch_mean is None else f"{load.batch_mean:.1f}",
            f"{load.cpu_cores:.2f} ({load.callers_cpu_cores:.2f})",
            "[green]held[/]" if load.held else "[red]not held[/]",
        )
    console.print(table)
    for error in dict.fromkeys(error for load in report.loads for error in load.errors):
        console.print(f"error: {error}", style="red")
    prediction = report.prediction
    if prediction:
        console.print(
            f"predicted: {prediction.sessions} sessions; by bandwidth {prediction.by_bandwidth} "
            f"({prediction.bandwidth_gb_per_sec:.0f} GB/s for {prediction.weights_mb:.0f} MB of "
            f"weights and {prediction.kv_mb_per_session:.1f} MB a session), by arithmetic "
            f"{prediction.by_arithmetic} ({prediction.gflops:.0f} GFLOP/s)"
        )
    console.print(f"measured: {report.held} held in real time, at most 1 % of their steps late")


def _plot(report: BenchReport, path: Path) -> None:
    from pipecat_duplex.commands.plot import require_matplotlib

    require_matplotlib()
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5), dpi=150)
    callers = [load.callers for load in report.loads]
    percentiles = {"delay_p50_ms": "median", "delay_p95_ms": "95 %", "delay_p99_ms": "99 %"}
    for name, label in percentiles.items():
        axes.plot(callers, [getattr(load, name) for load in report.loads], marker="o", label=label)
    axes.axhline(1000 * STEP_SECS, color="0.6", linestyle=":", label="one step")
    axes.set_xlabel("callers")
    axes.set_ylabel("delay of an answer, ms")
    axes.set_title(f"{report.target}: {report.held} callers held in real time")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
