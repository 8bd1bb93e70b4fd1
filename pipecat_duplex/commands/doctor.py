"""``doctor``: whether this machine can hold a conversation, and what is wrong if not."""

import asyncio
import json
import platform
import threading
import time
from dataclasses import asdict, dataclass, field
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipecat_duplex.commands.capacity import USABLE_SHARE, StepTimes, measure_capacity
from pipecat_duplex.session import STEP_SECS, DuplexError, MissingExtra
from pipecat_duplex.version import __version__

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
        cpu_cores: Cores that this process may use, within the limits of its container.
        memory_gib: Memory of the machine, or the limit of its container; ``None`` where neither
            says.
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
        print(json.dumps(asdict(diagnosis), indent=2))
    else:
        _print_diagnosis(diagnosis, checkpoint)
    return 0 if diagnosis.can_converse else 1


async def diagnose(checkpoint: str) -> Diagnosis:
    """Examine the machine.

    Args:
        checkpoint: The model to measure.
    """
    from pipecat_duplex.engine.machine import available_memory_bytes, count_cores

    hub = _HubCheck()
    memory_bytes = available_memory_bytes()
    diagnosis = Diagnosis(
        python=platform.python_version(),
        packages={"pipecat-duplex": __version__} | {name: _version(name) for name in PACKAGES},
        extras={name: all(map(_is_installed, modules)) for name, modules in EXTRAS.items()},
        cpu_cores=count_cores(),
        memory_gib=None if memory_bytes is None else memory_bytes / 2**30,
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
    except ImportError:
        return False


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
    memory_gib = diagnosis.gpu_memory_gib if diagnosis.gpu else diagnosis.memory_gib
    memory_bytes = None if memory_gib is None else int(memory_gib * 2**30)
    try:
        capacity = await measure_capacity(checkpoint, memory_bytes=memory_bytes)
    except MissingExtra as error:
        diagnosis.complain(_one_line(error), "or use 'embedded', or a server that runs it")
        return
    except DuplexError as error:
        diagnosis.complain(_one_line(error), "choose another one with --checkpoint")
        return
    diagnosis.steps = capacity.steps
    diagnosis.sessions = capacity.sessions
    if capacity.summary is not None:
        diagnosis.checkpoint = asdict(capacity.summary)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


#
# what it means
#


def _judge(diagnosis: Diagnosis) -> None:
    step_ms = 1000 * STEP_SECS
    if diagnosis.steps:
        one = diagnosis.steps[0]
        diagnosis.can_converse = one.median_ms <= USABLE_SHARE * step_ms
        if not diagnosis.can_converse:
            diagnosis.complain(
                f"a step takes {one.median_ms:.0f} ms; real time needs "
                f"{USABLE_SHARE * step_ms:.0f} ms or less",
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
