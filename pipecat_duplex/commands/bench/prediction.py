"""What a device should carry, by the sizes of the checkpoint and the device's own speed."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipecat_duplex.commands.bench.load import fresh_processes
from pipecat_duplex.session import STEP_SAMPLES, STEP_SECS

if TYPE_CHECKING:
    import torch

    from pipecat_duplex.engine.torch.checkpoint import Checkpoint


@dataclass(frozen=True)
class Prediction:
    """What the device should carry by its bandwidth and its arithmetic.

    Parameters:
        bandwidth_gb_per_sec: Measured, reading memory.
        gflops: Measured, multiplying matrices.
        weights_mb: Read once a step, for all conversations.
        kv_mb_per_session: Attention memory of a conversation, read as far as it is filled.
        mflop_per_step: Arithmetic of a step of one conversation.
        sessions: Conversations whose step fits into 80 ms by both.
        by_bandwidth: By the bandwidth alone.
        by_arithmetic: By the arithmetic alone.
    """

    bandwidth_gb_per_sec: float
    gflops: float
    weights_mb: float
    kv_mb_per_session: float
    mflop_per_step: float
    sessions: int
    by_bandwidth: int
    by_arithmetic: int


def predict(checkpoint: str) -> Prediction:
    """Predict what the device carries. Blocks; loads the checkpoint in a process of its own.

    Every weight is read once a step, but for the tables of which a step reads a row; each
    conversation reads its attention memory, half filled on average. The arithmetic of a step is
    counted while one is computed. What a step costs beyond these, such as calling its operations
    one after another, is not in the prediction.

    Args:
        checkpoint: ``embedded``, a hub name or a local folder.

    Raises:
        MissingExtra: There is no torch to count and measure with.
        CheckpointError: The checkpoint cannot be loaded.
    """
    with fresh_processes(1) as process:
        return process.submit(_predict, checkpoint).result()


def _predict(name: str) -> Prediction:
    import pipecat_duplex.engine.torch  # noqa: F401  (imports moshi without its compiler)
    from pipecat_duplex.engine.torch.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(name)
    summary = checkpoint.summary
    weights = sum(_weight_bytes(module) for module in (checkpoint.lm, checkpoint.mimi))
    operations = _count_operations(checkpoint)
    bandwidth, flops = _measure_device(checkpoint.lm.device, checkpoint.lm.dtype)
    kv = max(1, summary.kv_bytes_per_slot / 2)
    by_bandwidth = max(0, int((bandwidth * STEP_SECS - weights) / kv))
    by_arithmetic = int(flops * STEP_SECS / operations)
    return Prediction(
        bandwidth_gb_per_sec=bandwidth / 1e9,
        gflops=flops / 1e9,
        weights_mb=weights / 1e6,
        kv_mb_per_session=summary.kv_bytes_per_slot / 1e6,
        mflop_per_step=operations / 1e6,
        sessions=min(by_bandwidth, by_arithmetic),
        by_bandwidth=by_bandwidth,
        by_arithmetic=by_arithmetic,
    )


def _weight_bytes(module: "torch.nn.Module") -> int:
    import torch

    tables = {
        parameter
        for part in module.modules()
        if isinstance(part, torch.nn.Embedding)
        for parameter in part.parameters()
    }
    return sum(p.nbytes for p in module.parameters() if p not in tables)


def _count_operations(checkpoint: "Checkpoint") -> int:
    """Count the operations (a multiplication and an addition are two) of one step."""
    import torch
    from moshi.models.lm import LMGen
    from moshi.utils.compile import no_cuda_graph
    from torch.utils.flop_counter import FlopCounterMode

    mimi, lm_gen = checkpoint.mimi, LMGen(checkpoint.lm, use_sampling=False)
    silence = torch.zeros(1, 1, STEP_SAMPLES, device=checkpoint.lm.device)
    with torch.no_grad(), no_cuda_graph(), mimi.streaming(1), lm_gen.streaming(1):
        for _ in range(lm_gen.max_delay):
            lm_gen.step(mimi.encode(silence))
        with FlopCounterMode(display=False) as counter:
            tokens = lm_gen.step(mimi.encode(silence))
            assert tokens is not None
            mimi.decode(tokens[:, 1:])
    return counter.get_total_flops()


def _measure_device(device: "torch.device", dtype: "torch.dtype") -> tuple[float, float]:
    """Return the bytes a second that can be read and the operations a second, at their best."""
    import torch

    on_gpu = device.type == "cuda"

    def best_secs(work) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            work()
            if on_gpu:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return min(times[1:])

    with torch.inference_mode():
        memory = torch.ones(64 * 2**20, device=device)
        bandwidth = memory.nbytes / best_secs(memory.sum)
        side = 4096 if on_gpu else 1024
        matrix = torch.ones(side, side, device=device, dtype=dtype)
        flops = 2 * side**3 / best_secs(lambda: matrix @ matrix)
    return bandwidth, flops
