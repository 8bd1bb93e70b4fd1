"""What the engine costs beyond the moshi calls that it makes.

    python -m benchmarks.engine_overhead [--checkpoint embedded] [--steps 500] [--rounds 3]

Runs the same audio with the same sampling settings through an ``Engine`` (asyncio, real sends) and
through a bare loop of moshi calls, in one process, in turns, and compares the CPU time of the whole
process. The target is a ratio of at most 1.03.
"""

import argparse
import asyncio
import statistics
import time
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from pipecat_duplex.engine import Engine
from pipecat_duplex.engine.checkpoint import find_checkpoint
from pipecat_duplex.engine.session import EngineSession
from pipecat_duplex.engine.torch.checkpoint import open_with_moshi
from pipecat_duplex.session import MOSHI_SAMPLING, STEP_SAMPLES, SessionConfig

from moshi.models import LMGen  # isort: skip  (after the engine, which keeps its compiler off)

SENT_AHEAD = 2
"""Frames on their way at any time, so that the engine never waits."""

TURN_STEPS = 25
"""Steps after which it is the other one's turn."""


@dataclass(frozen=True)
class Overhead:
    """CPU seconds of each round, engine and bare loop side by side."""

    engine_secs: list[float]
    bare_secs: list[float]

    @property
    def ratio(self) -> float:
        """Median over the rounds of engine to bare loop."""
        pairs = zip(self.engine_secs, self.bare_secs, strict=True)
        return statistics.median(engine / bare for engine, bare in pairs)


class BareLoop:
    """One conversation at a time by direct calls, as in ``moshi.server``."""

    def __init__(self, checkpoint: str, config: SessionConfig):
        """Load the checkpoint and begin to stream."""
        info = open_with_moshi(find_checkpoint(checkpoint))
        sampling = config.sampling()
        self.encoder = info.get_mimi()
        self.decoder = info.get_mimi()
        self.lm_gen = LMGen(
            info.get_moshi(dtype=torch.float32),
            temp=sampling.audio_temperature,
            temp_text=sampling.text_temperature,
            top_k=sampling.audio_top_k,
            top_k_text=sampling.text_top_k,
        )
        torch.set_flush_denormal(True)
        for module in (self.encoder, self.decoder, self.lm_gen):
            module.streaming_forever(1)

    def begin(self) -> None:
        """Begin a conversation."""
        self.index = 0
        with torch.inference_mode():
            for module in (self.encoder, self.decoder, self.lm_gen):
                module.reset_streaming()

    def run(self, audio: np.ndarray) -> None:
        """Go on over audio of shape ``(steps, STEP_SAMPLES)``."""
        with torch.inference_mode():
            for frame in audio:
                codes = self.encoder.encode(torch.from_numpy(frame)[None, None])
                if self.index == 0:
                    self.encoder.reset_streaming()
                self.index += 1
                tokens = self.lm_gen.step(codes)
                if tokens is not None:
                    self.decoder.decode(tokens[:, 1:]).numpy()
                    tokens[0, 0, 0].item()


async def run_engine(session: EngineSession, audio: np.ndarray) -> None:
    """Go on with a conversation through the engine, sending a little ahead."""
    frames = iter(audio)
    for frame in islice(frames, SENT_AHEAD):
        last = session.send(frame)
    async for step in session.steps():
        for frame in islice(frames, 1):
            last = session.send(frame)
        if step.index == last:
            break


async def measure(checkpoint: str, steps: int, rounds: int) -> Overhead:
    """Measure both in turns of a few steps, so that a busy machine disturbs both alike."""
    torch.set_num_threads(1)  # the engine's own default
    # The same sampling for both, whatever the checkpoint recommends.
    config = SessionConfig(seed=0, **MOSHI_SAMPLING._asdict())
    rng = np.random.default_rng(0)
    audio = rng.uniform(-0.1, 0.1, size=(steps, STEP_SAMPLES)).astype(np.float32)
    bare = BareLoop(checkpoint, config)
    engine = await Engine.load(checkpoint, runtime="torch", device="cpu")
    try:
        return await _compare(engine, bare, config, audio, rounds)
    finally:
        await engine.close()


async def _compare(
    engine: Engine, bare: BareLoop, config: SessionConfig, audio: np.ndarray, rounds: int
) -> Overhead:
    steps = len(audio)
    overhead = Overhead([], [])
    for _ in range(rounds):
        bare.begin()
        session = await engine.open(config)
        engine_secs = bare_secs = 0.0
        for number, start in enumerate(range(0, steps, TURN_STEPS)):
            frames = audio[start : start + TURN_STEPS]
            for turn in ("engine", "bare") if number % 2 else ("bare", "engine"):
                started = time.process_time()
                if turn == "engine":
                    await run_engine(session, frames)
                    engine_secs += time.process_time() - started
                else:
                    bare.run(frames)
                    bare_secs += time.process_time() - started
        await session.close()
        overhead.engine_secs.append(engine_secs)
        overhead.bare_secs.append(bare_secs)
    return overhead


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="embedded")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    overhead = asyncio.run(measure(options.checkpoint, options.steps, options.rounds))
    for engine_secs, bare_secs in zip(overhead.engine_secs, overhead.bare_secs, strict=True):
        print(
            f"engine {1000 * engine_secs / options.steps:.2f} ms of CPU a step, "
            f"bare loop {1000 * bare_secs / options.steps:.2f}, ratio {engine_secs / bare_secs:.3f}"
        )
    print(f"ratio over {options.rounds} rounds of {options.steps} steps: {overhead.ratio:.3f}")


if __name__ == "__main__":
    main()
