"""Where the time of a step goes on ONNX Runtime, beside the count of its operations, and torch's.

    python -m benchmarks.onnx_step [--callers 1 8 16 32 64] [--steps 20]

Processor time of one thread, medians; both runtimes take turns in one process. Needs the extras
``moshi`` and ``dev``.
"""

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import onnx

from pipecat_duplex.engine.checkpoint import EMBEDDED_FOLDER, GRAPHS
from pipecat_duplex.engine.model import StepModel
from pipecat_duplex.engine.onnx import load_model as load_onnx_model
from pipecat_duplex.engine.onnx.model import OnnxModel
from pipecat_duplex.engine.torch import load_model as load_torch_model
from pipecat_duplex.session import STEP_SAMPLES, SessionConfig

WARM_UP_STEPS = 3


def count_operations(name: str) -> int:
    """Count the operations of a graph for one conversation; a multiply-add is two."""
    model = onnx.load(EMBEDDED_FOLDER / f"{name}.onnx", load_external_data=False)
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = 1
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in [*graph.value_info, *graph.input, *graph.output]:
        shapes[value.name] = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
    constant = {tensor.name for tensor in graph.initializer}
    operations = 0
    for node in graph.node:
        if all(name in constant for name in node.input):
            constant.update(node.output)  # folded when the graph is loaded
        elif node.op_type in ("MatMul", "Gemm", "Conv"):
            first, second = (shapes[name] for name in node.input[:2])
            inner = math.prod(second[1:]) if node.op_type == "Conv" else first[-1]
            operations += 2 * math.prod(shapes[node.output[0]]) * inner
    return operations


@contextmanager
def timing_parts(model: OnnxModel) -> Iterator[dict[str, list[float]]]:
    """Collect the processor time of each graph's runs."""
    parts: dict[str, list[float]] = defaultdict(list)
    for name in GRAPHS:
        graph: Any = getattr(model._lanes[0], f"_{name}")

        def run(*place: int, name: str = name, inner: Any = graph.run) -> None:
            started = time.thread_time()
            inner(*place)
            parts[name].append(time.thread_time() - started)

        graph.run = run
    yield parts


def step_secs(model: StepModel, frames: dict[int, np.ndarray]) -> float:
    """Processor time of one step."""
    started = time.thread_time()
    model.step(frames)
    return time.thread_time() - started


def measure(callers: int, steps: int) -> str:
    """One line of the table."""
    rng = np.random.default_rng(0)
    ours, theirs = (
        load_onnx_model("embedded", callers),
        load_torch_model("embedded", callers, "cpu"),
    )
    times: dict[str, list[float]] = {"onnx": [], "torch": []}
    with ours.running(), theirs.running(), timing_parts(ours) as parts:
        for model in (ours, theirs):
            sampling = model.summary.sampling._asdict()
            for slot in range(callers):
                model.join(slot, SessionConfig(seed=slot, **sampling))
        for _ in range(steps + WARM_UP_STEPS):
            frames = {
                slot: rng.normal(0, 0.05, STEP_SAMPLES).astype(np.float32)
                for slot in range(callers)
            }
            times["onnx"].append(step_secs(ours, frames))
            times["torch"].append(step_secs(theirs, frames))
    whole, torch_whole = (1000 * median(times[name][WARM_UP_STEPS:]) for name in times)
    by_part = [1000 * median(parts[name][WARM_UP_STEPS - 1 :]) for name in GRAPHS]
    host = whole - sum(by_part)
    cells = [f"{ms:.1f}" for ms in (whole, *by_part, host, torch_whole)]
    return f"| {callers} | {' | '.join(cells)} | × {whole / torch_whole:.2f} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 8, 16, 32, 64])
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    print(f"| callers | step, ms | {' | '.join(GRAPHS)} | host | torch | ratio |")
    print("| --- " * (len(GRAPHS) + 5) + "|")
    counts = [count_operations(name) / 1e6 for name in GRAPHS]
    cells = " | ".join(f"{count:.1f}" for count in counts)
    print(f"| MFLOP each | {sum(counts):.1f} | {cells} | | | |")
    for callers in options.callers:
        print(measure(callers, options.steps), flush=True)


if __name__ == "__main__":
    main()
