"""What it costs to write known frames into a slot, beside stepping through them.

    python -m benchmarks.prefill [--frames 160] [--repeats 5]

Processor time of one thread with the embedded model, medians. Runtimes, and the two ways, take
turns in one process. A step is one of the slot alone, codec and all; the frames have no sound to
warm the codec with, as in a persona. The longest part is what neighbours wait for. Needs the extra
``moshi``.
"""

import argparse
import time
from statistics import median
from typing import NamedTuple

import numpy as np

from pipecat_duplex.engine.model import StepModel
from pipecat_duplex.engine.onnx import load_model as load_onnx_model
from pipecat_duplex.engine.prefix import Prefix
from pipecat_duplex.engine.torch import load_model as load_torch_model
from pipecat_duplex.session import STEP_SAMPLES, SessionConfig

MEASURED_STEPS = 20


class Turn(NamedTuple):
    """What one turn of a model took, in seconds of processor time.

    Parameters:
        prefill: All parts of a prefill.
        longest_part: The longest of them.
        step: One step.
    """

    prefill: float
    longest_part: float
    step: float


def take_turn(model: StepModel, codes: np.ndarray) -> Turn:
    """Write frames into slot 0, then step there."""
    model.join(0, SessionConfig.greedy())
    ends = [time.thread_time()]
    for _ in model.prefill(0, Prefix(codes)):
        ends.append(time.thread_time())
    ends.append(time.thread_time())
    parts = np.diff(ends).tolist()
    silence = np.zeros(STEP_SAMPLES, np.float32)
    started = time.thread_time()
    for _ in range(MEASURED_STEPS):
        model.step({0: silence})
    return Turn(sum(parts), max(parts), (time.thread_time() - started) / MEASURED_STEPS)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    models = {
        "onnx": load_onnx_model("embedded", 1),
        "torch": load_torch_model("embedded", 1, "cpu"),
    }
    summary = models["onnx"].summary
    rng = np.random.default_rng(0)
    codes = rng.integers(0, summary.audio_tokens, (17, options.frames))
    codes[0] = rng.integers(0, summary.text_tokens, options.frames)
    turns: dict[str, list[Turn]] = {name: [] for name in models}
    with models["onnx"].running(), models["torch"].running():
        for model in models.values():
            model.warm_up()
        for _ in range(options.repeats):
            for name, model in models.items():
                turns[name].append(take_turn(model, codes))
    print(f"| runtime | {options.frames} steps, ms | prefill, ms | longest part, ms | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for name, taken in turns.items():
        steps, prefill, part = (
            1000 * median(values)
            for values in (
                [options.frames * turn.step for turn in taken],
                [turn.prefill for turn in taken],
                [turn.longest_part for turn in taken],
            )
        )
        ratio = median(turn.prefill / (options.frames * turn.step) for turn in taken)
        print(f"| {name} | {steps:.0f} | {prefill:.0f} | {part:.0f} | × {ratio:.3f} |")


if __name__ == "__main__":
    main()
