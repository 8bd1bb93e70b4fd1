"""What a step costs, by runtime and by the conversations in it; and where torch's time goes.

    python -m benchmarks.step_cost [--checkpoint embedded] [--callers 1,8,16] [--turns 12]

Each variant takes turns of a few steps, so that a busy machine disturbs all alike, and is compared
with the first one in the same turn: medians of the ratios. ``CPU`` is processor time of the whole
process, which another process does not change much; ``wall`` is what a caller waits for.

- ``moshi``: moshi's own transformers, called one operation after another, on torch;
- ``torch``: the engine on torch, which calls fewer operations (``engine/torch/transformers.py``);
- ``bfloat16``: the same as ``moshi``, with the language model in bfloat16;
- ``onnx``, ``onnx, 2 threads``: the engine on ONNX Runtime.
"""

import argparse
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import torch

from pipecat_duplex.engine import onnx
from pipecat_duplex.engine.model import StepModel
from pipecat_duplex.engine.torch import sampling
from pipecat_duplex.engine.torch.checkpoint import load_checkpoint
from pipecat_duplex.engine.torch.model import BatchedModel
from pipecat_duplex.session import STEP_SAMPLES, SessionConfig

TURN_STEPS = 6
WARM_UP_TURNS = 1


def load_moshi(checkpoint: str, callers: int) -> BatchedModel:
    """Load moshi's own transformers."""
    with mock.patch.object(sampling, "can_run", lambda lm: False):
        return BatchedModel(load_checkpoint(checkpoint, "cpu"), callers, 1)


def load_torch(checkpoint: str, callers: int) -> BatchedModel:
    """Load the engine on torch."""
    return BatchedModel(load_checkpoint(checkpoint, "cpu"), callers, 1)


def load_bfloat16(checkpoint: str, callers: int) -> BatchedModel:
    """Load moshi's own transformers in bfloat16."""
    loaded = load_checkpoint(checkpoint, "cpu")
    loaded.lm.to(torch.bfloat16)
    return BatchedModel(loaded, callers, 1)


VARIANTS: dict[str, Callable[[str, int], StepModel]] = {
    "moshi": load_moshi,
    "torch": load_torch,
    "bfloat16": load_bfloat16,
    "onnx": lambda checkpoint, callers: onnx.load_model(checkpoint, callers, 1),
    "onnx, 2 threads": lambda checkpoint, callers: onnx.load_model(checkpoint, callers, 2),
}


@dataclass
class Cost:
    """Times of a step, one of each turn."""

    cpu_secs: list[float] = field(default_factory=list)
    wall_secs: list[float] = field(default_factory=list)


def measure(checkpoint: str, callers: int, turns: int, names: list[str]) -> dict[str, Cost]:
    """Let the variants take turns.

    Args:
        checkpoint: What to run.
        callers: Conversations, all in every step.
        turns: Turns of each variant.
        names: The variants.
    """
    rng = np.random.default_rng(0)
    costs = {name: Cost() for name in names}
    with ExitStack() as stack:
        models = {name: VARIANTS[name](checkpoint, callers) for name in names}
        for model in models.values():
            with torch.inference_mode():
                for slot in range(callers):
                    model.join(slot, SessionConfig(seed=slot))
            stack.enter_context(model.running())
        for turn in range(-WARM_UP_TURNS, turns):
            shape = (TURN_STEPS, callers, STEP_SAMPLES)
            audio = rng.uniform(-0.1, 0.1, shape).astype(np.float32)
            for name in names if turn % 2 else reversed(names):
                cpu_secs, wall_secs = _run_turn(models[name], audio)
                if turn >= 0:
                    costs[name].cpu_secs.append(cpu_secs)
                    costs[name].wall_secs.append(wall_secs)
    return costs


def _run_turn(model: StepModel, audio: np.ndarray) -> tuple[float, float]:
    began_cpu_secs, began_secs = time.process_time(), time.perf_counter()
    for frames in audio:
        model.step(dict(enumerate(frames)))
    cpu_secs = time.process_time() - began_cpu_secs
    return cpu_secs / len(audio), (time.perf_counter() - began_secs) / len(audio)


@contextmanager
def _timed(parts: Mapping[str, tuple[object, str]], secs: dict[str, list[float]]) -> Iterator[None]:
    """Note the processor time of calls, each given as an object and a method of it."""
    with ExitStack() as stack:
        for part, (owner, name) in parts.items():
            call = getattr(owner, name)

            def timed_call(*args, call=call, part=part):
                began_secs = time.thread_time()
                result = call(*args)
                secs[part].append(time.thread_time() - began_secs)
                return result

            stack.enter_context(mock.patch.object(owner, name, timed_call))
        yield


def profile(model: BatchedModel, callers: int) -> dict[str, float]:
    """Return where the processor time of a step on torch goes, as medians in ms."""
    state = model._lm_gen._streaming_state
    assert state is not None and state.graphed_depth is not None
    parts = {
        "encoder": (model._mimi, "encode"),
        "time": (state.graphed_main, "func"),
        "depth": (state.graphed_depth, "func"),
        "language model": (model._lm_gen, "step"),
        "decoder": (model._mimi, "decode"),
        "all": (model, "step"),
    }
    secs: dict[str, list[float]] = defaultdict(list)
    audio = np.random.default_rng(1).uniform(-0.1, 0.1, (30, callers, STEP_SAMPLES))
    with torch.inference_mode():
        for slot in range(callers):
            model.join(slot, SessionConfig(seed=slot))
    with model.running():
        _run_turn(model, audio[:3].astype(np.float32))
        with _timed(parts, secs):
            _run_turn(model, audio.astype(np.float32))
    return {part: 1000 * statistics.median(times) for part, times in secs.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="embedded")
    parser.add_argument("--callers", default="1,8,16")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--variants", default=";".join(VARIANTS), help="Separated by ';'.")
    options = parser.parse_args()
    names = options.variants.split(";")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for callers in map(int, options.callers.split(",")):
        costs = measure(options.checkpoint, callers, options.turns, names)
        first = costs[names[0]]
        for name, cost in costs.items():
            pairs = zip(cost.cpu_secs, first.cpu_secs, strict=True)
            ratio = statistics.median(own / base for own, base in pairs)
            print(
                f"{callers:3} callers  {name:16} {1000 * statistics.median(cost.cpu_secs):6.1f} ms "
                f"CPU  {1000 * statistics.median(cost.wall_secs):6.1f} ms wall  x{ratio:.2f} CPU",
                flush=True,
            )
        for name, load in (("moshi", load_moshi), ("torch", load_torch)):
            if name in names:
                times = profile(load(options.checkpoint, callers), callers)
                parts = ", ".join(f"{part} {ms:.1f}" for part, ms in times.items())
                print(f"{callers:3} callers  {name}: {parts}", flush=True)


if __name__ == "__main__":
    main()
