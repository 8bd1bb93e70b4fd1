"""A full-duplex bot in one file, for Pipecat's runner.

The model listens and speaks at the same time: there is no VAD, STT, LLM or TTS to wire up, and you
can talk over it. Run it with one of::

    python examples/quickstart.py -t webrtc    # a page at http://localhost:7860/client
    python examples/quickstart.py -t daily     # a Daily room; needs DAILY_API_KEY
    python examples/quickstart.py -t twilio -x your-tunnel.example.com    # a phone number

Captions go to standard output and logs to standard error: ``2>bot.log`` keeps them apart.

Environment:
    DUPLEX_CHECKPOINT: The model: ``embedded`` (default), a hub name such as
        ``kyutai/moshiko-pytorch-bf16``, or a local folder.
    DUPLEX_SLOTS: Conversations at a time (default 2).
    DUPLEX_URL: Servers to call instead of a model in this process, with commas between them:
        addresses, a name with many addresses, or a registry. ``DUPLEX_API_KEY`` is their key.
"""

import os

from pipecat.frames.frames import Frame, LLMFullResponseEndFrame, LLMTextFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.types import RunnerArguments
from pipecat.runner.utils import create_transport
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat.transports.websocket.fastapi import FastAPIWebsocketParams
from pipecat.workers.runner import WorkerRunner

from pipecat_duplex import (
    AgentYieldedFrame,
    BackchannelFrame,
    DuplexBackend,
    DuplexLLMService,
    DuplexRTVIFeed,
    MonologueTextFrame,
)


class CaptionLog(FrameProcessor):
    """Prints what the agent says while it says it, and how the floor changes hands."""

    def __init__(self):
        """Begin with nobody speaking."""
        super().__init__()
        self._speaking = False
        self._end = ""

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        """Print what the frame says, and pass it on."""
        await super().process_frame(frame, direction)
        if direction == FrameDirection.DOWNSTREAM:
            self._caption(frame)
        await self.push_frame(frame, direction)

    def _caption(self, frame: Frame):
        if isinstance(frame, MonologueTextFrame) and not self._speaking:
            self._speaking = True
            print(f"[{frame.time_secs:6.2f} s] agent: ", end="", flush=True)
        elif isinstance(frame, LLMTextFrame):
            print(frame.text, end="", flush=True)
        elif isinstance(frame, BackchannelFrame):
            print(f" (you, {frame.duration_secs:.2f} s) ", end="", flush=True)
        elif isinstance(frame, AgentYieldedFrame):
            # The agent's last word is still to come.
            self._end = f"— [yielded to you in {frame.delay_secs:.2f} s]"
        elif isinstance(frame, LLMFullResponseEndFrame) and self._speaking:
            print(self._end, flush=True)
            self._speaking, self._end = False, ""


backend: DuplexBackend | None = None
"""Where sessions come from, if not from the model of this process."""


async def shared_backend() -> DuplexBackend:
    """Return the one model of this process; the first conversation loads it."""
    if backend is not None:
        return backend
    from pipecat_duplex.engine import Engine

    checkpoint = os.getenv("DUPLEX_CHECKPOINT", "embedded")
    return await Engine.shared(checkpoint, slots=int(os.getenv("DUPLEX_SLOTS", "2")))


async def make_service() -> DuplexLLMService:
    """Call servers elsewhere, if any are named, or the model of this process."""
    url = os.getenv("DUPLEX_URL")
    if url:
        key = os.getenv("DUPLEX_API_KEY") or None
        return DuplexLLMService(url=[each.strip() for each in url.split(",")], api_key=key)
    return DuplexLLMService(backend=await shared_backend())


def daily_params():
    """Import Daily's SDK only for a bot that joins a Daily room."""
    from pipecat.transports.daily.transport import DailyParams

    # The room as one voice: tracks of their own would be heard one after another.
    return DailyParams(audio_in_enabled=True, audio_in_user_tracks=False, audio_out_enabled=True)


def eval_params():
    """Let ``pipecat eval run`` drive the bot, with recordings as the user."""
    from pipecat.evals.transport import EvalTransportParams

    return EvalTransportParams(audio_in_enabled=True, audio_out_enabled=True)


transport_params = {
    "webrtc": lambda: TransportParams(audio_in_enabled=True, audio_out_enabled=True),
    "daily": daily_params,
    "twilio": lambda: FastAPIWebsocketParams(audio_in_enabled=True, audio_out_enabled=True),
    "eval": eval_params,
}


async def run_bot(transport: BaseTransport, runner_args: RunnerArguments):
    """Hold one conversation over a transport."""
    duplex = await make_service()
    captions = CaptionLog()
    user_aggregator, assistant_aggregator = LLMContextAggregatorPair(LLMContext())

    pipeline = Pipeline(
        [
            transport.input(),
            user_aggregator,
            duplex,  # hears the user, speaks, and yields when spoken over
            captions,
            DuplexRTVIFeed(),  # tells clients of yields, backchannels and the monologue
            transport.output(),
            assistant_aggregator,
        ]
    )

    # A phone call is 8 kHz from end to end: then only the service resamples, with a low delay.
    on_the_phone = getattr(runner_args, "transport_type", None) == "twilio"
    sample_rate = 8000 if on_the_phone else 24000
    worker = PipelineWorker(
        pipeline,
        params=PipelineParams(
            audio_in_sample_rate=sample_rate,
            audio_out_sample_rate=sample_rate,
            enable_metrics=True,
        ),
        idle_timeout_secs=runner_args.pipeline_idle_timeout_secs,
    )

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport, client):
        await worker.cancel()

    runner = WorkerRunner(handle_sigint=runner_args.handle_sigint)
    await runner.add_workers(worker)
    await runner.run()


async def bot(runner_args: RunnerArguments):
    """Run one conversation. Pipecat's runner calls this for each one."""
    transport = await create_transport(runner_args, transport_params)
    await run_bot(transport, runner_args)


if __name__ == "__main__":
    from pipecat.runner.run import main

    main()
