"""What is measured, one function each. Every one gives plain data, and stops at its deadline."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from moshi.models.lm import LMModel
from moshi.utils.compile import no_cuda_graph

from benchmarks.gpu.shapes import Shape, build, build_ear, recognizer_of
from pipecat_duplex.engine.checkpoint import CODEBOOKS
from pipecat_duplex.engine.prefix import DECODER_STEPS, Prefix
from pipecat_duplex.engine.torch.checkpoint import Checkpoint
from pipecat_duplex.engine.torch.model import BatchedModel
from pipecat_duplex.engine.torch.quantization import Quantization
from pipecat_duplex.session import STEP_SAMPLES, STEP_SECS, SessionConfig
from pipecat_duplex.session.history import AUDIO_STEPS

FP8 = torch.float8_e4m3fn


@dataclass(frozen=True)
class Bench:
    """What the measures share.

    Parameters:
        shape: Sizes of the model.
        device: Where it runs.
        dtype: Number format of the language model.
        steps: Steps that are timed at each size.
        slots: Numbers of sessions.
        prefills: Numbers of known steps.
        ends_at_secs: When everything has to be done, by ``time.monotonic``.
    """

    shape: Shape
    device: torch.device
    dtype: torch.dtype
    steps: int
    slots: tuple[int, ...]
    prefills: tuple[int, ...]
    ends_at_secs: float

    @property
    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.ends_at_secs


@contextlib.contextmanager
def running(
    checkpoint: Checkpoint,
    slots: int,
    *,
    memory_dtype: torch.dtype | None = None,
    graphs: bool = True,
    ear: LMModel | None = None,
) -> Iterator[BatchedModel]:
    """Run a model with so many slots; its memory is free again afterwards.

    Args:
        checkpoint: The model.
        slots: So many.
        memory_dtype: Number format of the language model's memory.
        graphs: Whether CUDA graphs are used.
        ear: The language model of a recogniser that hears beside it.
    """
    with contextlib.ExitStack() as stack:
        if not graphs:
            stack.enter_context(no_cuda_graph())
        stack.enter_context(torch.inference_mode())
        recognizer = None
        if ear is not None:
            recognizer = recognizer_of(ear, slots)
            checkpoint.mimi.set_num_codebooks(max(CODEBOOKS, ear.n_q))
            stack.callback(checkpoint.mimi.set_num_codebooks, CODEBOOKS)
        model = BatchedModel(checkpoint, slots, 1, memory_dtype, recognizer)
        stack.enter_context(model.running())
        for _ in range(model.warm_up_steps):
            # Graphs are captured here, one for the whole batch.
            take_step(model, range(slots), silence())
        yield model


def take_step(model: BatchedModel, slots: Iterable[int], pcm: np.ndarray) -> None:
    """Take a step, and one of the recogniser if there is one."""
    outputs = model.step(dict.fromkeys(slots, pcm))
    sounds = {slot: each.sound for slot, each in outputs.items() if each.sound is not None}
    if model.recognizer is not None and sounds:
        model.recognizer.step(sounds)


def silence() -> np.ndarray:
    """Return a step of silence."""
    return np.zeros(STEP_SAMPLES, np.float32)


def noise(steps: int, seed: int) -> np.ndarray:
    """Return audio that is not silent, shape ``(steps, STEP_SAMPLES)``."""
    rng = np.random.default_rng(seed)
    return rng.uniform(-0.1, 0.1, (steps, STEP_SAMPLES)).astype(np.float32)


def step_times(bench: Bench, checkpoint: Checkpoint, **how) -> list[dict]:
    """Time a step for each number of sessions, all of them taking part."""
    rows = []
    for slots in bench.slots:
        if bench.over:
            break
        try:
            rows.append({"slots": slots, **_time_steps(bench, checkpoint, slots, **how)})
        except torch.OutOfMemoryError:
            rows.append({"slots": slots, "error": "out of memory"})
            free()
            break
    return rows


def step_times_hearing(bench: Bench, checkpoint: Checkpoint) -> list[dict]:
    """Time a step together with one of a recogniser that hears every session."""
    return step_times(bench, checkpoint, ear=build_ear(bench.shape, bench.device, bench.dtype))


def _time_steps(bench: Bench, checkpoint: Checkpoint, slots: int, **how) -> dict:
    before = _allocated(bench.device)
    with running(checkpoint, slots, **how) as model:
        for slot in range(slots):
            model.join(slot, SessionConfig(seed=slot))
        audio = noise(bench.steps, seed=1)
        times_ms = [
            _timed_ms(bench.device, lambda pcm=pcm: take_step(model, range(slots), pcm))
            for pcm in audio
        ]
        used = _allocated(bench.device) - before
    times_ms = times_ms[2:]
    return {
        "p50_ms": statistics.median(times_ms),
        "p99_ms": float(np.percentile(times_ms, 99)),
        "gib_per_session": used / slots / 2**30,
    }


def joins_and_leaves(bench: Bench, checkpoint: Checkpoint, slots: int) -> dict:
    """Step by the clock while sessions come and go, and count the steps that come late."""
    audio, late, times_ms = noise(bench.steps, seed=2), 0, []
    rng = np.random.default_rng(3)
    with running(checkpoint, slots) as model:
        seated = set(range(slots))
        for slot in seated:
            model.join(slot, SessionConfig(seed=slot))
        for pcm in audio:
            slot = int(rng.integers(slots))
            if slot in seated and rng.random() < 0.3:
                model.leave(slot)
                seated.discard(slot)
            elif slot not in seated:
                model.join(slot, SessionConfig(seed=slot))
                seated.add(slot)
            frames = dict.fromkeys(seated, pcm)
            times_ms.append(_timed_ms(bench.device, lambda frames=frames: model.step(frames)))
            late += times_ms[-1] > 1000 * STEP_SECS
            time.sleep(max(0.0, STEP_SECS - times_ms[-1] / 1000) * (bench.device.type == "cuda"))
    return {
        "slots": slots,
        "steps": len(times_ms),
        "late": late,
        "p50_ms": statistics.median(times_ms),
        "max_ms": max(times_ms),
    }


def prefill(bench: Bench, checkpoint: Checkpoint, slots: int) -> list[dict]:
    """Write known steps into a slot, and time the parts between which neighbours step."""
    rows = []
    with running(checkpoint, slots) as model:
        for slot in range(slots - 1):
            model.join(slot, SessionConfig(seed=slot))
        for steps in bench.prefills:
            if bench.over:
                break
            model.join(slots - 1, SessionConfig(seed=9))
            parts_ms = []
            parts = model.prefill(slots - 1, known_steps(checkpoint, steps))
            while True:
                began = _now(bench.device)
                more = next(parts, "end") != "end"
                parts_ms.append(1000 * (_now(bench.device) - began))
                if not more:
                    break
                model.step(dict.fromkeys(range(slots - 1), silence()))
            rows.append(
                {
                    "steps": steps,
                    "parts": len(parts_ms),
                    "longest_part_ms": max(parts_ms),
                    "all_ms": sum(parts_ms),
                }
            )
    return rows


def known_steps(checkpoint: Checkpoint, steps: int) -> Prefix:
    """Return so many steps of random tokens, as a history would bring them."""
    rng = np.random.default_rng(5)
    summary = checkpoint.summary
    codes = rng.integers(0, summary.audio_tokens, (17, steps)).astype(np.int32)
    codes[0] = rng.integers(4, summary.text_tokens, steps)
    audio = noise(min(steps, AUDIO_STEPS), seed=6)
    return Prefix(codes, heard_frames=min(steps, DECODER_STEPS), audio=audio)


def isolation(bench: Bench, checkpoint: Checkpoint, slots: int) -> dict:
    """Count the steps whose tokens are the same alone and beside neighbours."""
    audio = noise(bench.steps, seed=7)
    with running(checkpoint, slots) as model:
        alone = _tokens(model, audio, {})
        others = {slot: noise(bench.steps, seed=10 + slot) for slot in range(1, slots)}
        beside = _tokens(model, audio, others)
    equal = (alone == beside).all(axis=1)
    first = int(np.argmin(equal)) if not equal.all() else None
    return {
        "slots": slots,
        "steps": len(equal),
        "equal": int(equal.sum()),
        "first_different_step": first,
    }


def _tokens(model: BatchedModel, audio: np.ndarray, others: dict[int, np.ndarray]) -> np.ndarray:
    for slot in (0, *others):
        model.join(slot, SessionConfig(seed=slot))
    rows = []
    for step, pcm in enumerate(audio):
        frames = {0: pcm} | {slot: theirs[step] for slot, theirs in others.items()}
        rows.append(model.step(frames)[0].tokens)
    for slot in (0, *others):
        model.leave(slot)
    return np.stack(rows)


def quantized(bench: Bench, mode: Quantization) -> list[dict]:
    """Time steps with weights in fewer bits."""
    checkpoint = build(bench.shape, bench.device, bench.dtype, mode)
    return step_times(bench, checkpoint)


def bandwidth(device: torch.device) -> float:
    """Measure how fast memory is read and written by a copy, in 10^9 bytes a second."""
    size = 2**30 if device.type == "cuda" else 2**26
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times_ms = [_timed_ms(device, lambda: target.copy_(source)) for _ in range(8)]
    return 2 * size / (statistics.median(times_ms[2:]) * 1e6)


def _timed_ms(device: torch.device, call: Callable[[], object]) -> float:
    began = _now(device)
    call()
    return 1000 * (_now(device) - began)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def free() -> None:
    """Give cached memory back to the card."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
