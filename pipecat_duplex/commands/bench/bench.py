"""``bench``: how many conversations an engine or a server holds in real time."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
from loguru import logger
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipecat_duplex.commands.audio_file import read_audio
from pipecat_duplex.commands.bench.callers import PLAYOUT_SECS
from pipecat_duplex.commands.bench.load import (
    MAX_LAG_MS,
    Load,
    LoadOptions,
    fresh_processes,
    measure_load,
)
from pipecat_duplex.commands.bench.prediction import Prediction, predict
from pipecat_duplex.commands.capacity import measure_capacity
from pipecat_duplex.commands.outputs import check_outputs, file_name
from pipecat_duplex.session import STEP_SAMPLES, STEP_SECS, DuplexError, MissingExtra

if TYPE_CHECKING:
    from pipecat_duplex.engine.engine import Runtime

FIRST_CALLERS = 4
MOST_CALLERS = 1024
"""Where the search begins, and where it gives up."""

FINENESS = 16
"""The search stops when the next load differs by less than one caller in so many."""

CONFIRM_TIMES = 3
"""What the search finds must also be held for so many times as long."""


@dataclass(frozen=True)
class BenchOptions:
    """What ``bench`` is asked for.

    Parameters:
        callers: Loads to try, one after another. Without any, the largest that is held is searched.
        secs: Length of each.
        checkpoint: The model, run in this machine.
        runtime: What runs the model, in the engine's words.
        url: A server to call instead.
        api_key: Shown to the server.
        speech: What the callers say; a murmur if None.
        come_and_go: Whether callers hang up and call again.
        playout_ms: When a caller's player plays an answer, counted from the end of the step.
        json: Where the figures go.
        plot: Where the picture goes.
    """

    callers: tuple[int, ...] = ()
    secs: float = 30.0
    checkpoint: str = "embedded"
    runtime: "Runtime | None" = None
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    speech: Path | None = None
    come_and_go: bool = True
    playout_ms: float = 1000 * PLAYOUT_SECS
    json: Path | None = None
    plot: Path | None = None

    @property
    def target(self) -> str:
        """The checkpoint, or the server of the URL: the rest of a URL may hold a key."""
        return self.checkpoint if self.url is None else urlsplit(self.url).netloc.rpartition("@")[2]

    def load(self, callers: int, speech: np.ndarray | None) -> LoadOptions:
        """Return the load of so many callers who say this."""
        return LoadOptions(
            callers=callers,
            secs=self.secs,
            checkpoint=self.checkpoint,
            runtime=self.runtime,
            url=self.url,
            api_key=self.api_key,
            speech=speech,
            come_and_go=self.come_and_go,
            playout_ms=self.playout_ms,
        )


@dataclass
class BenchReport:
    """The measurement, and the predictions beside it.

    Parameters:
        target: The checkpoint, or the server.
        playout_ms: When a caller's player plays an answer, counted from the end of the step.
        loads: The measured loads, in the order of time.
        held: Most callers that were held in real time.
        sessions_by_steps: Conversations that ``doctor`` expects here, by the time of their steps;
            None for a server elsewhere.
        prediction: What the device could carry by its bandwidth and arithmetic alone; None for a
            server elsewhere, or without torch.
    """

    target: str
    playout_ms: float
    loads: list[Load] = field(default_factory=list)
    held: int = 0
    sessions_by_steps: int | None = None
    prediction: Prediction | None = None

    @property
    def memory_mb_per_session(self) -> float | None:
        """Growth of the resident memory from the smallest load to the largest, a session."""
        told = {load.callers: load.memory_mb for load in self.loads if load.memory_mb is not None}
        few, many = min(told, default=0), max(told, default=0)
        if few == many:
            return None
        return (told[many] - told[few]) / (many - few)


def run_bench(options: BenchOptions) -> BenchReport:
    """Measure, print, and write the files that the options name.

    Args:
        options: The options of the command.

    Raises:
        DuplexError: The checkpoint, the server, the speech or a place to write is not good.
    """
    speech = _check_options(options)
    screen = Console(stderr=True)
    report = BenchReport(options.target, options.playout_ms)

    def measure(load: LoadOptions) -> Load:
        with screen.status(f"{load.callers} callers for {load.secs:g} s"):
            report.loads.append(measure_load(load))
        return report.loads[-1]

    if options.callers:
        loads = [measure(options.load(callers, speech)) for callers in options.callers]
        report.held = max((load.callers for load in loads if load.held), default=0)
    else:
        report.held = find_held(options.load(FIRST_CALLERS, speech), measure)
    if options.url is None:
        with screen.status("the steps of several conversations"):
            report.sessions_by_steps = _measure_sessions(options)
        try:
            report.prediction = predict(options.checkpoint)
        except MissingExtra as e:
            logger.info(f"No prediction by bandwidth and arithmetic: {e}")
    _print(Console(), report)
    try:
        if options.json:
            data = asdict(report) | {"memory_mb_per_session": report.memory_mb_per_session}
            options.json.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        if options.plot:
            _plot(report, options.plot)
    except OSError as error:
        name = file_name(Path(error.filename)) if error.filename else "a file"
        raise DuplexError(f"{name} cannot be written: {error.strerror or error}") from error
    return report


def _check_options(options: BenchOptions) -> np.ndarray | None:
    """Refuse bad options before minutes are spent on them; return the callers' speech."""
    if options.callers and min(options.callers) < 1:
        raise DuplexError("--callers takes numbers from 1 on")
    check_outputs((options.json, options.plot), inputs=(options.speech,))
    if options.plot is not None:
        from pipecat_duplex.commands.converse.plot import require_matplotlib

        require_matplotlib()
    if options.url is not None:
        from pipecat_duplex.remote import one_server

        one_server(options.url)  # refuses an address that means nothing
    if options.speech is None:
        return None
    speech = read_audio(options.speech).pcm
    if len(speech) < STEP_SAMPLES:
        raise DuplexError(f"--speech takes {STEP_SECS:g} s of audio or more")
    return speech


def _measure_sessions(options: BenchOptions) -> int | None:
    """Return what ``doctor`` would say, measured in a process of its own."""
    with fresh_processes(1) as process:
        return process.submit(_run_capacity, options.checkpoint, options.runtime).result()


def _run_capacity(checkpoint: str, runtime: "Runtime | None") -> int | None:
    return asyncio.run(measure_capacity(checkpoint, runtime=runtime)).sessions


def find_held(first: LoadOptions, measure: Callable[[LoadOptions], Load]) -> int:
    """Find the most callers that are held in real time.

    Doubles until a load is not held, halves the gap, and tries what it has found for longer.

    Args:
        first: The load to begin with.
        measure: Measures a load.

    Returns:
        The callers of the largest load that was held for long; 0 if none was.
    """

    def is_held(callers: int, times: int = 1) -> bool:
        return measure(replace(first, callers=callers, secs=times * first.secs)).held

    held, lost = 0, MOST_CALLERS + 1
    callers = first.callers
    while lost - held > max(1, held // FINENESS):
        if is_held(callers):
            held = callers
        else:
            lost = callers
        callers = min(2 * held, MOST_CALLERS) if lost > MOST_CALLERS else (held + lost) // 2
    while held and not is_held(held, CONFIRM_TIMES):
        held -= max(1, held // FINENESS)
    return held


def _print(console: Console, report: BenchReport) -> None:
    console.print(loads_table(report.loads, report.target, report.playout_ms))
    for error in dict.fromkeys(error for load in report.loads for error in load.errors):
        console.print(f"error: {escape(error)}", style="red")
    best = [load for load in report.loads if load.callers == report.held and load.batch_ms]
    if best:
        times = ", ".join(f"{size}: {ms:.0f}" for size, ms in best[-1].batch_ms.items())
        console.print(f"ms a step, by the conversations in it, at {report.held} callers: {times}")
    if any(load.callers_lag_ms > MAX_LAG_MS for load in report.loads):
        console.print(
            f"The callers themselves were more than {MAX_LAG_MS:g} ms late at times: this machine "
            "is too busy to judge another.",
            style="yellow",
        )
    prediction = report.prediction
    memory_mb = report.memory_mb_per_session
    if memory_mb is not None:
        kv = f", {prediction.kv_mb_per_session:.1f} of them attention memory" if prediction else ""
        console.print(f"memory a session: {memory_mb:.1f} MB{kv}")
    if report.sessions_by_steps is not None:
        console.print(f"expected: {report.sessions_by_steps} by the time of steps, as in doctor")
    if prediction:
        console.print(
            f"by the device alone: {prediction.sessions}; by bandwidth {prediction.by_bandwidth} "
            f"({prediction.bandwidth_gb_per_sec:.0f} GB/s for {prediction.weights_mb:.0f} MB of "
            f"weights and {prediction.kv_mb_per_session:.1f} MB a session), by arithmetic "
            f"{prediction.by_arithmetic} ({prediction.gflops:.0f} GFLOP/s for "
            f"{prediction.mflop_per_step:.0f} MFLOP a step of each)"
        )
    console.print(f"measured: {report.held} held in real time, at most 1 % of their steps late")


def loads_table(loads: list[Load], target: str, playout_ms: float) -> Table:
    """Return loads as a table for a terminal.

    Args:
        loads: One a row.
        target: What was measured.
        playout_ms: When an answer was late.
    """
    table = Table(
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        title=f"{escape(target)}: late is an answer more than {playout_ms:g} ms after its step was "
        "spoken",
        caption="ms: delay of 50/95/99 % of the answers, computing time of 50/99 % of the steps; "
        "lag: how late the callers themselves were in 1 % of their steps",
    )
    for name in ("n", "secs", "late", "delay", "step", "batch", "cores", "callers'", "lag", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for load in loads:
        step = "" if load.step_p50_ms is None else f"{load.step_p50_ms:.0f}/{load.step_p99_ms:.0f}"
        table.add_row(
            str(load.callers),
            f"{load.secs:g}",
            f"{100 * load.late_share:.1f} %",
            f"{load.delay_p50_ms:.0f}/{load.delay_p95_ms:.0f}/{load.delay_p99_ms:.0f}",
            step,
            "" if load.batch_mean is None else f"{load.batch_mean:.1f}",
            "" if load.model_cpu_cores is None else f"{load.model_cpu_cores:.2f}",
            f"{load.callers_cpu_cores:.2f}",
            f"{load.callers_lag_ms:.0f}",
            "[green]held[/]" if load.held else "[red]not[/]",
        )
    return table


def _plot(report: BenchReport, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, (delays, steps) = pyplot.subplots(1, 2, figsize=(11, 4.5), dpi=150, sharex=True)
    loads = sorted(report.loads, key=lambda load: load.callers)
    callers = [load.callers for load in loads]
    percentiles = {"delay_p50_ms": "median", "delay_p95_ms": "95 %", "delay_p99_ms": "99 %"}
    for name, label in percentiles.items():
        # What is far too late stays at the upper edge.
        shown_ms = [min(getattr(load, name), 3 * report.playout_ms) for load in loads]
        delays.plot(callers, shown_ms, marker="o", label=label, clip_on=False)
    delays.axhline(report.playout_ms, color="0.6", linestyle=":", label="played")
    delays.set_ylabel("from the end of a step to its answer, ms")
    delays.set_ylim(0, 3 * report.playout_ms)
    if any(load.step_p50_ms is not None for load in loads):
        for name, label in {"step_p50_ms": "median", "step_p99_ms": "99 %"}.items():
            steps.plot(callers, [getattr(load, name) for load in loads], marker="o", label=label)
    steps.axhline(1000 * STEP_SECS, color="0.6", linestyle=":", label="real time")
    steps.set_ylabel("computing time of a step, ms")
    steps.set_ylim(bottom=0)
    title = f"{report.target}: {report.held} callers held in real time"
    if report.prediction:
        title += f"; {report.prediction.sessions} by bandwidth and arithmetic alone"
    figure.suptitle(title)
    for axes in (delays, steps):
        axes.set_xlabel("callers")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend()
    figure.tight_layout()
    figure.savefig(path, format="png")
    pyplot.close(figure)
