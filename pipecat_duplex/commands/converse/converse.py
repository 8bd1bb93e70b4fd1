"""``converse``: a file talks with the model, through a real Pipecat pipeline."""

import asyncio
import math
import secrets
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pipecat_duplex.commands.audio_file import AudioFile, read_audio, write_wav
from pipecat_duplex.commands.converse.file_transport import FileInputTransport, FileOutputTransport
from pipecat_duplex.commands.converse.pacing import LockStep, RealTime, WatchedBackend
from pipecat_duplex.commands.converse.pipeline import run_pipeline
from pipecat_duplex.commands.converse.recording import Figures, Recording, count, write_events
from pipecat_duplex.commands.outputs import check_outputs, file_name
from pipecat_duplex.conversation.clock import ClockSettings
from pipecat_duplex.service.service import DuplexLLMService, DuplexLLMSettings
from pipecat_duplex.session import (
    SAMPLE_RATE_HZ,
    STEP_SECS,
    DuplexBackend,
    DuplexError,
    SessionConfig,
    StepTiming,
)

TAIL_SECS = 4.0
"""Silence after the file, in which the agent answers."""

MAX_TAIL_SECS = 600.0

MAX_SHOWN = 12
"""Utterances and delays in the summary on the screen."""


@dataclass(frozen=True)
class ConverseOptions:
    """What ``converse`` is asked for.

    Parameters:
        audio: The file that is the user.
        out: Where the agent's voice goes.
        stereo: Whether it goes there with the user's: user left, agent right.
        events: Where the events go, one JSON object a line.
        plot: Where the picture goes.
        checkpoint: The model.
        url: A server to talk with instead, at the wall clock's pace.
        api_key: Shown to the server.
        seed: Makes the conversation repeatable. ``None`` draws one.
        greedy: Whether the most likely token is always taken.
        realtime: Whether to go by the wall clock instead of as fast as possible.
        tail_secs: Silence after the file.
    """

    audio: Path
    out: Path | None = None
    stereo: bool = False
    events: Path | None = None
    plot: Path | None = None
    checkpoint: str = "embedded"
    url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    seed: int | None = None
    greedy: bool = False
    realtime: bool = False
    tail_secs: float = TAIL_SECS

    @property
    def model(self) -> str:
        """The checkpoint, or the server of the URL: the rest of a URL may hold a key."""
        return self.checkpoint if self.url is None else urlsplit(self.url).netloc.rpartition("@")[2]

    @property
    def by_the_clock(self) -> bool:
        """Whether audio goes in at the pace of a microphone, as a server expects it."""
        return self.realtime or self.url is not None


@dataclass(frozen=True)
class ConverseReport:
    """What came of it.

    Parameters:
        recording: Both voices, and every event.
        figures: The conversation in numbers.
        timings: Where the time of each step went.
        elapsed_secs: How long it took.
        seed: The seed, if it had an effect.
        trained: Whether the weights mean something; ``None`` where there are none.
        failure: Why it ended early, if it did.
    """

    recording: Recording
    figures: Figures
    timings: list[StepTiming]
    elapsed_secs: float
    seed: int | None
    trained: bool | None
    failure: DuplexError | None


def run_converse(
    options: ConverseOptions, *, backend: DuplexBackend | None = None
) -> ConverseReport:
    """Hold the conversation with a progress bar, write its files, and sum it up.

    Args:
        options: The options of the command.
        backend: Where the session comes from, instead of the checkpoint.

    Raises:
        DuplexError: The file, the checkpoint or a place to write is not good, or the session
            failed; what was recorded until then is written.
    """
    _check_options(options)
    screen = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[said]}", markup=False),
        TimeElapsedColumn(),
        console=screen,
        transient=True,
    )
    task = progress.add_task(
        "loading the model" if options.url is None else "calling", total=None, said=""
    )

    def show(done_secs: float, total_secs: float, said: str) -> None:
        progress.update(
            task,
            description=f"{done_secs:.0f} of {total_secs:.0f} s",
            completed=done_secs,
            total=total_secs,
            said=said[-max(1, screen.width - 50) :],
        )

    # A bar that is never shown would still end with an empty line.
    with progress if screen.is_terminal else nullcontext():
        report = asyncio.run(converse(options, backend=backend, on_progress=show))
        progress.update(task, description="writing")
        _write(options, report)
    if report.failure:
        raise report.failure
    _print_summary(options, report)
    return report


async def converse(
    options: ConverseOptions,
    *,
    backend: DuplexBackend | None = None,
    on_progress: Callable[[float, float, str], None] = lambda done_secs, total_secs, said: None,
) -> ConverseReport:
    """Hold the conversation; nothing is written.

    Args:
        options: The options of the command.
        backend: Where the session comes from, instead of the checkpoint. It is left open.
        on_progress: Called with the seconds fed, the seconds in all, and the agent's last words.

    Raises:
        DuplexError: The file or the checkpoint is not good, or the model has stalled.
    """
    user = read_audio(options.audio)
    if backend is not None:
        return await _converse(options, user, backend, None, on_progress)
    if options.url is not None:
        from pipecat_duplex.remote import one_server

        server = one_server(options.url, api_key=options.api_key)
        if server.is_greedy and options.seed is None:
            options = replace(options, greedy=True)  # No seed is drawn that it would refuse.
        try:
            return await _converse(options, user, server, None, on_progress)
        finally:
            await server.close()
    from pipecat_duplex.engine import Engine

    engine = await Engine.load(options.checkpoint, tts="own")
    try:
        return await _converse(options, user, engine, engine.summary.trained, on_progress)
    finally:
        await engine.close()


async def _converse(
    options: ConverseOptions,
    user: AudioFile,
    backend: DuplexBackend,
    trained: bool | None,
    on_progress: Callable[[float, float, str], None],
) -> ConverseReport:
    seed = _seed(options)
    tail = np.zeros(round(options.tail_secs * SAMPLE_RATE_HZ), np.float32)
    recording = Recording(np.concatenate([user.pcm, tail]))
    watched = WatchedBackend(backend)
    pacer = RealTime(watched) if options.by_the_clock else LockStep(watched)
    service = DuplexLLMService(
        checkpoint=options.model,
        backend=watched,
        settings=_settings(options.greedy, seed),
        # In lock step no audio is ever late.
        clock=None if options.by_the_clock else ClockSettings(patience_secs=math.inf),
        now_secs=pacer.now_secs,
    )
    recording.watch(service)

    def on_step(steps: int) -> None:
        done_secs = min(steps * STEP_SECS, recording.secs)
        on_progress(done_secs, recording.secs, recording.last_words)

    def on_error(message: str) -> None:
        recording.add("error", len(watched.timings) * STEP_SECS, message=message)

    microphone = FileInputTransport(recording.user_pcm, pacer, on_step)
    loudspeaker = FileOutputTransport(recording.take_frame, realtime=options.by_the_clock)
    started_secs = asyncio.get_running_loop().time()
    await run_pipeline(microphone, service, loudspeaker, feed=microphone.feed, on_error=on_error)
    elapsed_secs = asyncio.get_running_loop().time() - started_secs
    recording.finish()
    figures = count(recording)
    summary = asdict(figures) | {"checkpoint": options.model, "trained": trained, "seed": seed}
    recording.add("summary", recording.secs, **summary)
    return ConverseReport(
        recording, figures, watched.timings, elapsed_secs, seed, trained, watched.failure
    )


def _seed(options: ConverseOptions) -> int | None:
    """Return the seed to sample with; one is drawn here so that it can be told."""
    if options.greedy:
        return None
    return secrets.randbits(31) if options.seed is None else options.seed


def _settings(greedy: bool, seed: int | None) -> DuplexLLMSettings:
    config = SessionConfig.greedy() if greedy else SessionConfig()
    return DuplexLLMSettings(
        seed=seed,
        text_temperature=config.text_temperature,
        audio_temperature=config.audio_temperature,
    )


def _check_options(options: ConverseOptions) -> None:
    """Refuse what cannot be done before an hour is spent on it."""
    if not 0 <= options.tail_secs <= MAX_TAIL_SECS:
        raise DuplexError(f"--tail takes 0 to {MAX_TAIL_SECS:.0f} seconds")
    check_outputs((options.out, options.events, options.plot), inputs=(options.audio,))
    if options.stereo and options.out is None:
        raise DuplexError("--stereo says what --out holds: give --out a file as well")
    if options.plot is not None:
        from pipecat_duplex.commands.converse.plot import require_matplotlib

        require_matplotlib()


def _write(options: ConverseOptions, report: ConverseReport) -> None:
    recording = report.recording
    try:
        if options.out:
            agent = recording.agent_pcm
            write_wav(options.out, [recording.user_pcm, agent] if options.stereo else [agent])
        if options.events:
            write_events(options.events, recording.events)
        if options.plot:
            from pipecat_duplex.commands.converse.plot import plot_conversation

            plot_conversation(recording, options.plot)
    except OSError as error:
        name = file_name(Path(error.filename)) if error.filename else "a file"
        raise DuplexError(f"{name} cannot be written: {error.strerror or error}") from error


def _print_summary(options: ConverseOptions, report: ConverseReport) -> None:
    """Print what a person wants to know first."""
    figures = report.figures
    console = Console()
    said = [e.fields["text"] for e in report.recording.select("agent_stopped") if e.fields["text"]]
    if len(said) > MAX_SHOWN:
        said = [f"(… {len(said) - MAX_SHOWN} times before)", *said[-MAX_SHOWN:]]
    console.print(
        Panel(
            Text("\n".join(said) or "(nothing)"),
            title="the agent said",
            title_align="left",
            border_style="dark_orange3",
        )
    )
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("turns", f"user {figures.user_turns}, agent {figures.agent_turns}")
    if figures.answer_delays_secs:
        delays = ", ".join(f"{delay:.2f}" for delay in figures.answer_delays_secs[:MAX_SHOWN])
        table.add_row("answered after", f"{delays} s")
    table.add_row("yields", f"{figures.yields}")
    table.add_row("backchannels", f"{figures.backchannels}")
    if report.timings:
        compute_ms = [1000 * timing.compute_secs for timing in report.timings]
        longest_ms = max(compute_ms)
        step_ms = 1000 * STEP_SECS
        table.add_row(
            "step", f"{median(compute_ms):.1f} ms of {step_ms:.0f} (longest {longest_ms:.0f})"
        )
    factor = report.elapsed_secs / report.recording.secs
    table.add_row(
        "took", f"{report.elapsed_secs:.1f} s for {report.recording.secs:.1f} s ({factor:.2f}x)"
    )
    if report.seed is not None:
        table.add_row("seed", f"{report.seed} says the same again")
    files = [file_name(path) for path in (options.out, options.events, options.plot) if path]
    if files:
        table.add_row("written", Text(", ".join(files)))
    console.print(table)
    if report.trained is False:
        line = f"The weights of '{options.model}' are random: the agent babbles."
        console.print(Text(line, style="yellow"))
