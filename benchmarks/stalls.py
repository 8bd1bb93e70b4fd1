"""Whether time stays true on a machine that stands still now and then.

``python -m benchmarks.stalls``: one conversation by the clock with a model that stalls for 1 to
10 s about once a minute. The user says something every 3 s, and the agent answers. A row a minute:
how late the agent's sound is by the user's time line (``pts`` beside the wall clock), and the
memory of the process.
"""

import asyncio
import json
import os
import time
from pathlib import Path
from statistics import median

import numpy as np
import typer
from loguru import logger
from pipecat.frames.frames import EndFrame, Frame, InputAudioRawFrame, TTSAudioRawFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

from pipecat_duplex import DuplexLLMService
from pipecat_duplex.conversation.pcm import float_to_pcm16
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.session import STEP_SECS

RATE_HZ = 16_000
CHUNK_SECS = 0.02
TURN_SECS = 3.0
VOICE_SECS = 0.6
STALLS_SECS = (1.0, 10.0)


class Ear(FrameProcessor):
    """Notes how late each frame of the agent's sound is, by the user's time line."""

    def __init__(self):
        """Initialize; the conversation has not begun."""
        super().__init__()
        self.began_secs: float | None = None
        self.offsets_secs: list[float] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        """Note a frame and pass it on."""
        await super().process_frame(frame, direction)
        if isinstance(frame, TTSAudioRawFrame) and frame.pts and self.began_secs is not None:
            self.offsets_secs.append(time.monotonic() - self.began_secs - frame.pts / 1e9)
        await self.push_frame(frame, direction)

    def take(self) -> list[float]:
        """Return what was noted since the last call."""
        offsets_secs, self.offsets_secs = self.offsets_secs, []
        return offsets_secs


def draw_stalls(minutes: float, seed: int) -> dict[int, float]:
    """Return the seconds of each stall, by step: one in most minutes, none in the last one."""
    rng = np.random.default_rng(seed)
    starts_secs = 60 * np.arange(max(0, int(minutes) - 1)) + rng.uniform(
        20, 45, max(0, int(minutes) - 1)
    )
    return {round(at / STEP_SECS): rng.uniform(*STALLS_SECS) for at in starts_secs}


def resident_mib() -> float:
    """Return the process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def user_chunk(at_secs: float) -> bytes:
    """Return 20 ms of the user: a hum at the beginning of each turn."""
    samples = round(CHUNK_SECS * RATE_HZ)
    speaks = at_secs % TURN_SECS < VOICE_SECS
    wave = 0.3 * np.sin(np.arange(samples) * 0.3) * speaks
    return float_to_pcm16(wave.astype(np.float32))


async def hold(minutes: float, seed: int) -> list[dict]:
    """Hold the conversation; return a row a minute."""
    stalls = draw_stalls(minutes, seed)
    answers = Script(replies=["one two"] * round(60 * minutes), stalls=stalls, step_secs=0.005)
    service, ear = DuplexLLMService(backend=ScriptedBackend(answers)), Ear()
    worker = PipelineWorker(
        Pipeline([service, ear]),
        params=PipelineParams(audio_in_sample_rate=RATE_HZ, audio_out_sample_rate=RATE_HZ),
        idle_timeout_secs=None,
    )
    rows: list[dict] = []

    async def feed():
        await asyncio.sleep(1.0)
        ear.began_secs = began_secs = time.monotonic()
        for chunk in range(round(60 * minutes / CHUNK_SECS)):
            at_secs = chunk * CHUNK_SECS
            await asyncio.sleep(max(0.0, began_secs + at_secs + CHUNK_SECS - time.monotonic()))
            await worker.queue_frame(InputAudioRawFrame(user_chunk(at_secs), RATE_HZ, 1))
            if (chunk + 1) % round(60 / CHUNK_SECS) == 0:
                rows.append(row(len(rows) + 1, service, ear.take(), stalls))
        await worker.queue_frame(EndFrame())

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await asyncio.gather(runner.run(), feed())
    return rows


def row(minute: int, service: DuplexLLMService, offsets_secs: list[float], stalls: dict) -> dict:
    """Return and print a minute's figures."""
    within = range(round((minute - 1) * 60 / STEP_SECS), round(minute * 60 / STEP_SECS))
    figures = {
        "minute": minute,
        "stalled_secs": round(sum(secs for step, secs in stalls.items() if step in within), 1),
        # The last frames of the minute: what a stall did to it is made up for by then.
        "offset_ms": round(1000 * median(offsets_secs[-50:])) if offsets_secs else None,
        "lag_ms": round(1000 * service.lag_secs),
        "memory_mib": round(resident_mib(), 1),
    }
    print(json.dumps(figures), flush=True)
    return figures


def main(minutes: float = 20, seed: int = 0, json_path: Path | None = None):
    """Measure whether time stays true."""
    logger.remove()
    rows = asyncio.run(hold(minutes, seed))
    first, last = rows[0], rows[-1]
    print(
        f"time lines apart: {abs(last['offset_ms'] - first['offset_ms'])} ms; memory: "
        f"{last['memory_mib'] - rows[len(rows) // 4]['memory_mib']:+.1f} MiB since a quarter"
    )
    if json_path is not None:
        json_path.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    typer.run(main)
