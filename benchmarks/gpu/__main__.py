"""What a GPU holds: a model of the real shapes with random weights, measured in a few minutes.

    python -m benchmarks.gpu [--shape 7b] [--minutes 8] [--out FOLDER]

Needs torch and moshi, no network and no checkpoint. On a machine without a GPU it runs the small
shape on the CPU, which proves the command and measures nothing of use. ``benchmarks/gpu.md`` says
what to bring to a machine without a network.
"""

import argparse
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

# The compiler's first minutes are no part of a step.
os.environ.setdefault("NO_TORCH_COMPILE", "1")

import torch

from benchmarks.gpu import measures, report
from benchmarks.gpu.prediction import Card, find_card
from benchmarks.gpu.shapes import ShapeName, build, shape_of
from pipecat_duplex.engine.torch.checkpoint import Checkpoint

SLOTS = (1, 2, 4, 8, 16, 24, 32, 40, 48)
SMALL_SLOTS = (1, 2, 4)
JOINING_SLOTS = {"7b": 24, "narrow": 4, "small": 3}


def run(bench: measures.Bench, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure everything that the time allows, the most telling first.

    Args:
        bench: What to measure.
        say: Told what is being measured.

    Returns:
        Plain data, as it goes into ``gpu.json``.
    """
    device = bench.device
    on_gpu = device.type == "cuda"
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if on_gpu else "CPU",
        "torch": torch.__version__,
        "shape": bench.shape.name,
        "copy_gb_s": measures.bandwidth(device),
    }
    say("building the model")
    checkpoint = build(bench.shape, device, bench.dtype)
    summary = checkpoint.summary
    figures["lm_parameters"] = summary.lm_parameters
    figures["kv_bytes_per_session"] = summary.kv_bytes_per_slot
    card = _card(figures, device)
    made = report.predictions(_sizes(checkpoint), card)
    figures["prediction"] = {name: dataclasses.asdict(each) for name, each in made.items()}
    times = figures["step_times"] = {}
    skipped = figures["left_out"] = []
    for name, target, measure in _plan(bench, checkpoint, figures, times):
        _measure(name, target, measure, bench, skipped, say)
    del checkpoint, measure  # its memory is wanted for what follows
    measures.free()
    for mode in ("int8", "int4"):
        _measure(mode, times, partial(measures.quantized, bench, mode), bench, skipped, say)
    return figures


def _plan(
    bench: measures.Bench,
    checkpoint: Checkpoint,
    figures: dict[str, Any],
    times: dict[str, Any],
) -> Iterator[tuple[str, dict[str, Any], Callable[[], Any]]]:
    """Yield what is measured with full weights: its name, where it goes, and how."""
    joining = JOINING_SLOTS[bench.shape.name]
    yield "bfloat16", times, partial(measures.step_times, bench, checkpoint)
    for name, measure in (
        ("joins_and_leaves", measures.joins_and_leaves),
        ("prefill", measures.prefill),
        ("isolation", measures.isolation),
    ):
        yield name, figures, partial(measure, bench, checkpoint, joining)
    hearing = partial(measures.step_times_hearing, bench, checkpoint)
    yield "bfloat16, a recogniser beside it", times, hearing
    if bench.device.type == "cuda":
        few = dataclasses.replace(bench, slots=(1, 8))
        no_graphs = partial(measures.step_times, few, checkpoint, graphs=False)
        yield "bfloat16, no graphs", times, no_graphs
    fp8 = partial(measures.step_times, bench, checkpoint, memory_dtype=measures.FP8)
    yield "bfloat16, fp8 memory", times, fp8


def _measure(
    name: str,
    target: dict[str, Any],
    measure: Callable[[], Any],
    bench: measures.Bench,
    skipped: list[str],
    say: Callable[[str], None],
) -> None:
    if bench.over:
        skipped.append(f"{name}: no time left")
        return
    say(name)
    try:
        target[name] = measure()
    except Exception as error:  # what one mode cannot do must not cost the figures of the others
        skipped.append(f"{name}: {type(error).__name__}: {error}")
        say(skipped[-1])
        measures.free()


def _sizes(checkpoint: Checkpoint) -> dict[str, int]:
    summary = checkpoint.summary
    return {
        "lm_parameters": summary.lm_parameters,
        "mimi_parameters": summary.mimi_parameters,
        "kv_bytes": summary.kv_bytes_per_slot,
    }


def _card(figures: dict[str, Any], device: torch.device) -> Card:
    if device.type != "cuda":
        return Card("CPU", 8.0, figures["copy_gb_s"])
    memory = torch.cuda.get_device_properties(device).total_memory
    return find_card(figures["device"], memory) or Card(
        figures["device"], memory / 2**30, figures["copy_gb_s"]
    )


def make_bench(shape: ShapeName | None, minutes: float, steps: int | None) -> measures.Bench:
    """Choose what to measure on this machine.

    Args:
        shape: The model's shape; ``None`` is ``7b`` on a GPU and ``small`` on a CPU.
        minutes: How long all may take.
        steps: Steps that are timed at each size.
    """
    on_gpu = torch.cuda.is_available()
    shape = shape or ("7b" if on_gpu else "small")
    return measures.Bench(
        shape=shape_of(shape),
        device=torch.device("cuda" if on_gpu else "cpu"),
        dtype=torch.bfloat16,
        steps=steps or (120 if on_gpu else 6),
        slots=SLOTS if on_gpu else SMALL_SLOTS,
        prefills=(160, 3000) if shape != "small" else (20, 160),
        ends_at_secs=time.monotonic() + 60 * minutes,
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=("7b", "narrow", "small"))
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, default=Path("gpu-figures"))
    options = parser.parse_args()
    began = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {what}", flush=True)

    figures = run(make_bench(options.shape, options.minutes, options.steps), say)
    report.write(options.out, figures)
    print(report.summary_table(figures))
    for line in figures["left_out"]:
        print(f"left out: {line}")


if __name__ == "__main__":
    main()
