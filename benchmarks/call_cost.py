"""What a call costs, in processor time: ``python -m benchmarks.call_cost``.

Calls by the clock, each in a real Pipecat pipeline whose agent says given words without a pause,
all in this process, and a server in another. Milliseconds of processor time for each second of each
call are those of a whole process, threads and kernel included: 10 ms a second are 100 calls on a
core.

``pipeline`` is the same pipeline with a processor in the service's place that makes the same sound
and nothing else: what Pipecat takes. ``scripted`` is a server without a model and callers whose
line is silent, as with a muted microphone; ``noisy`` the same with the noise of a room, to which
the voice detector listens; ``embedded`` a server with the small model.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from loguru import logger
from pipecat.frames.frames import Frame, InputAudioRawFrame, TTSAudioRawFrame
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.workers.runner import WorkerRunner

from benchmarks.survival.caller import Caller, Microphone, make_worker
from benchmarks.survival.workers import Worker
from pipecat_duplex.commands.converse.file_transport import FileOutputTransport
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES, STEP_SECS

NOISE = 0.003
"""On a ``noisy`` line: -50 dBFS, as in a quiet room."""

SETTLE_SECS = 2.0
"""Between the last call's beginning and the first second that counts."""


@dataclass(frozen=True)
class Cost:
    """Processor time of a second of a call.

    Parameters:
        bot_ms: Of the process with the bots.
        server_ms: Of the server's.
    """

    bot_ms: float
    server_ms: float


class Parrot(FrameProcessor):
    """Answers each step of audio with as much sound."""

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        """Process a frame.

        Args:
            frame: The frame to process.
            direction: The direction of frame flow.
        """
        await super().process_frame(frame, direction)
        if isinstance(frame, InputAudioRawFrame):
            frame = TTSAudioRawFrame(frame.audio, SAMPLE_RATE_HZ, 1)
        await self.push_frame(frame, direction)


async def measure_pipeline(callers: int, secs: float) -> Cost:
    """Measure pipelines without a model, a service or a server."""

    async def hold(began: asyncio.Event) -> None:
        microphone = Microphone()
        loudspeaker = FileOutputTransport(lambda frame: None, realtime=True)
        worker = make_worker(microphone, Parrot(), loudspeaker)
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        await asyncio.gather(runner.run(), _speak(microphone, worker, began, secs + SETTLE_SECS))

    began = [asyncio.Event() for _ in range(callers)]
    calls = asyncio.gather(*map(hold, began))
    cost = await _count(began, callers, secs, lambda: 0.0)
    await calls
    return cost


async def _speak(
    microphone: Microphone, worker: PipelineWorker, began: asyncio.Event, secs: float
) -> None:
    started = asyncio.Event()

    @worker.event_handler("on_pipeline_started")
    async def on_pipeline_started(_, frame):
        started.set()

    await started.wait()
    began.set()
    loop = asyncio.get_running_loop()
    began_secs = loop.time()
    for index in range(round((secs + 1.0) / STEP_SECS)):
        await asyncio.sleep(began_secs + index * STEP_SECS - loop.time())
        await microphone.hear(np.zeros(STEP_SAMPLES, np.float32))
    await worker.stop_when_done()


async def measure_calls(agent: str, callers: int, secs: float, noise: float = 0.0) -> Cost:
    """Measure calls on a server.

    Args:
        agent: The server's model: ``scripted``, which is none, or ``embedded``.
        callers: Calls at a time.
        secs: How long they are measured.
        noise: Noise on the callers' lines; 1 is full scale.
    """
    server = Worker(callers, agent=agent)
    await server.start()
    try:
        urls = [f"ws://127.0.0.1:{server.port}/api/chat"]
        bots = [Caller(urls, "told", noise) for _ in range(callers)]
        calls = asyncio.gather(*(bot.run(secs + 2 * SETTLE_SECS) for bot in bots))
        cost = await _count([bot.began for bot in bots], callers, secs, server.cpu_secs)
        for result in await calls:
            if result.lost:
                print(f"a call was lost: {result.lost}", file=sys.stderr)
        return cost
    finally:
        await server.stop()


async def _count(
    began: list[asyncio.Event], callers: int, secs: float, server_cpu_secs: Callable[[], float]
) -> Cost:
    for each in began:
        await each.wait()
    await asyncio.sleep(SETTLE_SECS)
    bot_secs, server_secs, began_secs = time.process_time(), server_cpu_secs(), time.monotonic()
    await asyncio.sleep(secs)
    call_secs = callers * (time.monotonic() - began_secs)
    bot_ms = 1e3 * (time.process_time() - bot_secs) / call_secs
    return Cost(bot_ms, 1e3 * (server_cpu_secs() - server_secs) / call_secs)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--secs", type=float, default=20.0, help="that are measured, each")
    parser.add_argument("--rows", default="pipeline,scripted,noisy,embedded")
    args = parser.parse_args()
    logger.remove()
    print(f"{args.callers} calls, {args.secs:g} s each; {os.cpu_count()} cores, load ", end="")
    print(f"{os.getloadavg()[0]:.1f}; ms of processor time for each second of a call")
    print("| | bot | server |\n| --- | --- | --- |")
    for name in args.rows.split(","):
        if name == "pipeline":
            cost = asyncio.run(measure_pipeline(args.callers, args.secs))
        else:
            agent, noise = ("scripted", NOISE) if name == "noisy" else (name, 0.0)
            cost = asyncio.run(measure_calls(agent, args.callers, args.secs, noise))
        server = f"{cost.server_ms:.1f}" if cost.server_ms else "–"
        print(f"| `{name}` | {cost.bot_ms:.1f} | {server} |", flush=True)


if __name__ == "__main__":
    main()
