"""``doctor``: whether this machine can hold a conversation, and what is wrong if not."""

import asyncio
import json
import os
import platform
import threading
import time
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipecat_duplex.session import STEP_SAMPLES, STEP_SECS, DuplexError, MissingExtra, SessionConfig
from pipecat_duplex.version import __version__

if TYPE_CHECKING:
    from pipecat_duplex.engine import Engine

PACKAGES = ("pipecat-ai", "onnxruntime", "torch", "moshi", "numpy", "huggingface_hub")

EXTRAS = {
    "moshi": ("torch", "moshi"),
    "plot": ("matplotlib",),
    "webrtc": ("aiortc",),
    "telephony": ("fastapi", "websockets"),
    "daily": ("daily",),
    "opus": ("sphn",),
    "server": ("aiohttp", "sphn"),
}
"""Modules that each extra of the package brings."""

HUB_CHECKPOINT = "kyutai/moshiko-pytorch-bf16"
HUB_TIMEOUT_SECS = 4.0

WARM_UP_STEPS = 5
MEASURED_STEPS = 50
SEVERAL_SLOTS = 4
STEP_TIMEOUT_SECS = 20.0

# Of the 80 ms of a step: the rest is for Pipecat, the network and bad luck.
USABLE_SHARE = 0.8


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
class Problem:
    """Something that is wrong.

    Parameters:
        what: What it is.
        remedy: What to do about it.
    """

    what: str
    remedy: str


@dataclass
class Diagnosis:
    """What was found.

    Parameters:
        python: Version.
        packages: Version of each package, ``None`` where it is not installed.
        extras: Whether what each extra brings is installed.
        cpu_cores: Cores that this process may use.
        memory_gib: Memory of the machine, ``None`` where it does not say.
        gpu: Name of the GPU, if there is one that torch can use.
        gpu_memory_gib: Its memory.
        hub: ``reachable``, ``not reachable`` or ``unknown``.
        checkpoint: What was loaded, as the engine sums it up.
        steps: Measured step times, the smallest batch first.
        sessions: Conversations that fit, by time and memory; ``None`` if that is not known.
        can_converse: Whether the machine can hold a conversation.
        problems: What is wrong, the worst first.
    """

    python: str
    packages: dict[str, str | None]
    extras: dict[str, bool]
    cpu_cores: int
    memory_gib: float | None
    gpu: str | None = None
    gpu_memory_gib: float | None = None
    hub: str = "unknown"
    checkpoint: dict[str, Any] = field(default_factory=dict)
    steps: list[StepTimes] = field(default_factory=list)
    sessions: int | None = None
    can_converse: bool = False
    problems: list[Problem] = field(default_factory=list)

    def complain(self, what: str, remedy: str) -> None:
        """Add a problem.

        Args:
            what: What is wrong.
            remedy: What to do about it.
        """
        self.problems.append(Problem(what, remedy))


def run_doctor(*, checkpoint: str = "embedded", as_json: bool = False) -> int:
    """Examine the machine and print what was found.

    Args:
        checkpoint: The model to measure.
        as_json: Print JSON instead of tables.

    Returns:
        The exit code: 0 if the machine can hold a conversation, else 1.
    """
    screen = Console(stderr=True)
    with screen.status("measuring the model"):
        diagnosis = asyncio.run(diagnose(checkpoint))
    if as_json:
        print(json.dumps(asdict(diagnosis), indent=2, ensure_ascii=False))
    else:
        _print_diagnosis(diagnosis, checkpoint)
    return 0 if diagnosis.can_converse else 1


async def diagnose(checkpoint: str) -> Diagnosis:
    """Examine the machine.

    Args:
        checkpoint: The model to measure.
    """
    hub = _HubCheck()
    diagnosis = Diagnosis(
        python=platform.python_version(),
        packages={"pipecat-duplex": __version__} | {name: _version(name) for name in PACKAGES},
        extras={name: all(map(_is_installed, modules)) for name, modules in EXTRAS.items()},
        cpu_cores=_cpu_cores(),
        memory_gib=_memory_gib(),
    )
    if diagnosis.extras["moshi"]:
        _find_gpu(diagnosis)
    await _measure(diagnosis, checkpoint)
    diagnosis.hub = await asyncio.to_thread(hub.result)
    _judge(diagnosis)
    return diagnosis


#
# what is there
#


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ValueError:  # a module without a spec: somebody has put it there by hand
        return True


def _cpu_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return None


def _find_gpu(diagnosis: Diagnosis) -> None:
    import torch

    if torch.cuda.is_available():
        diagnosis.gpu = torch.cuda.get_device_name(0)
        diagnosis.gpu_memory_gib = torch.cuda.get_device_properties(0).total_memory / 2**30


class _HubCheck:
    """Asks the hub for a page, in a thread that nobody has to wait for.

    The client's own timeout does not cover everything: looking up a name can hang for much longer.
    """

    def __init__(self):
        self._answer = "unknown"
        if _is_installed("huggingface_hub"):
            self._answer = "not reachable"
            self._thread = threading.Thread(target=self._ask, daemon=True)
            self._thread.start()
            self._until_secs = time.monotonic() + 1.5 * HUB_TIMEOUT_SECS
        else:
            self._thread = None

    def result(self) -> str:
        if self._thread is not None:
            self._thread.join(max(0.0, self._until_secs - time.monotonic()))
        return self._answer

    def _ask(self) -> None:
        try:
            from huggingface_hub import HfApi

            HfApi().model_info(HUB_CHECKPOINT, timeout=HUB_TIMEOUT_SECS)
            self._answer = "reachable"
        except Exception:  # each version of the client has its own
            self._answer = "not reachable"


#
# measuring
#


async def _measure(diagnosis: Diagnosis, checkpoint: str) -> None:
    for slots in (1, SEVERAL_SLOTS):
        try:
            await _measure_slots(diagnosis, checkpoint, slots)
        except MissingExtra as error:
            diagnosis.complain(_one_line(error), "or use 'embedded', or a server that runs it")
            return
        except (DuplexError, RuntimeError) as error:  # torch: out of memory
            if slots == 1:
                diagnosis.complain(_one_line(error), "choose another one with --checkpoint")
            return


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


async def _measure_slots(diagnosis: Diagnosis, checkpoint: str, slots: int) -> None:
    from pipecat_duplex.engine import Engine

    engine = await Engine.load(checkpoint, slots=slots)
    try:
        diagnosis.checkpoint = asdict(engine.summary)
        diagnosis.steps.append(await measure_steps(engine, slots))
    finally:
        await engine.close()


async def measure_steps(engine: "Engine", slots: int, steps: int = MEASURED_STEPS) -> StepTimes:
    """Measure steps in which every slot takes part, each as soon as the one before is done.

    Args:
        engine: The engine, with that many free slots.
        slots: Conversations to step together.
        steps: Steps to measure, after a few to warm up.

    Raises:
        DuplexError: A step failed, or took longer than :data:`STEP_TIMEOUT_SECS`.
    """
    sessions = [await engine.open(SessionConfig(seed=slot)) for slot in range(slots)]
    answers = [session.steps() for session in sessions]
    noise = np.random.default_rng(0).normal(0, 0.1, STEP_SAMPLES).astype(np.float32)
    took_ms: list[float] = []
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


#
# what it means
#


def _judge(diagnosis: Diagnosis) -> None:
    step_ms = 1000 * STEP_SECS
    if diagnosis.steps:
        one = diagnosis.steps[0]
        diagnosis.can_converse = one.median_ms <= USABLE_SHARE * step_ms
        diagnosis.sessions = estimate_sessions(diagnosis)
        if not diagnosis.can_converse:
            diagnosis.complain(
                f"a step takes {one.median_ms:.0f} ms; real time needs {step_ms:.0f} ms or less",
                "use a GPU, a smaller checkpoint, or a server that runs the model"
                if diagnosis.gpu is None
                else "use a faster GPU or a smaller checkpoint",
            )
        elif one.p99_ms > step_ms:
            diagnosis.complain(
                f"one step in a hundred takes {one.p99_ms:.0f} ms: expect small gaps",
                "close other programs that use the processor",
            )
    if diagnosis.checkpoint.get("trained") is False:
        diagnosis.complain(
            "the weights of the checkpoint are random: the agent babbles",
            f"use a trained one, such as {HUB_CHECKPOINT}",
        )
    if diagnosis.hub == "not reachable":
        diagnosis.complain(
            "the hub is not reachable",
            "use 'embedded' or a local folder, or check the network and HF_HUB_OFFLINE",
        )


def estimate_sessions(diagnosis: Diagnosis) -> int | None:
    """Estimate how many conversations fit at a time.

    A step costs so much however many take part, and so much more for each: two measurements give
    both. Memory sets the other limit.

    Args:
        diagnosis: With step times and the checkpoint.

    Returns:
        The number, or ``None`` where only one batch size was measured.
    """
    if len(diagnosis.steps) < 2:
        return None
    few, many = diagnosis.steps[0], diagnosis.steps[-1]
    each_ms = max(0.01, (many.median_ms - few.median_ms) / (many.slots - few.slots))
    base_ms = few.median_ms - few.slots * each_ms
    by_time = int((USABLE_SHARE * 1000 * STEP_SECS - base_ms) / each_ms + 1e-6)
    return max(0, min(by_time, _sessions_by_memory(diagnosis)))


def _sessions_by_memory(diagnosis: Diagnosis) -> int:
    found = diagnosis.checkpoint
    memory_gib = diagnosis.gpu_memory_gib if diagnosis.gpu else diagnosis.memory_gib
    if memory_gib is None:
        return 10**6
    lm_bytes = 2 if found["dtype"] == "bfloat16" else 4
    weights = found["lm_parameters"] * lm_bytes + found["mimi_parameters"] * 4
    # A tenth is left for what the steps themselves need.
    free = 0.9 * memory_gib * 2**30 - weights
    return int(free / max(1, found["kv_bytes_per_slot"]))


#
# what people look at
#


def _print_diagnosis(diagnosis: Diagnosis, checkpoint: str) -> None:
    console = Console()
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column()
    table.add_row("python", diagnosis.python)
    table.add_row("packages", _packages_text(diagnosis.packages))
    table.add_row("extras", _extras_text(diagnosis.extras))
    table.add_row("processor", f"{diagnosis.cpu_cores} cores{_gib(diagnosis.memory_gib)}")
    table.add_row("gpu", f"{diagnosis.gpu or 'none'}{_gib(diagnosis.gpu_memory_gib)}")
    table.add_row("hub", diagnosis.hub)
    table.add_row("checkpoint", Text(_checkpoint_text(diagnosis, checkpoint)))
    for times in diagnosis.steps:
        table.add_row(
            f"step, {times.slots} at a time",
            f"{times.median_ms:.1f} ms median, {times.p99_ms:.1f} ms 99 %"
            f" (of {1000 * STEP_SECS:.0f})",
        )
    if diagnosis.sessions is not None:
        table.add_row("conversations", f"about {diagnosis.sessions} at a time")
    console.print(table)
    console.print()
    if diagnosis.can_converse:
        console.print("[bold green]This machine can hold a conversation.[/bold green]")
    else:
        console.print("[bold red]This machine cannot hold a conversation yet.[/bold red]")
    for problem in diagnosis.problems:
        line = Text("• ", style="yellow").append(problem.what, style="yellow")
        console.print(line.append(f": {problem.remedy}", style="default"))


def _packages_text(packages: dict[str, str | None]) -> Text:
    text = Text()
    for name, version in packages.items():
        text.append(", " if text else "")
        text.append(f"{name} ")
        text.append(version or "missing", style="" if version else "yellow")
    return text


def _extras_text(extras: dict[str, bool]) -> Text:
    text = Text()
    for name, installed in extras.items():
        text.append("  " if text else "")
        mark, style = ("✓", "green") if installed else ("-", "dim")
        text.append(f"{mark} {name}", style=style)
    return text


def _checkpoint_text(diagnosis: Diagnosis, checkpoint: str) -> str:
    found = diagnosis.checkpoint
    if not found:
        return f"{checkpoint} (not loaded)"
    parameters = (found["lm_parameters"] + found["mimi_parameters"]) / 1e6
    return (
        f"{found['name']}: {parameters:.0f} M parameters on {found['device']} in {found['dtype']}, "
        f"run by {found['runtime']}, "
        f"looks back {found['context_steps'] * STEP_SECS:.0f} s, "
        f"{found['kv_bytes_per_slot'] / 2**20:.1f} MiB a conversation"
    )


def _gib(memory_gib: float | None) -> str:
    return "" if memory_gib is None else f", {memory_gib:.1f} GiB"
