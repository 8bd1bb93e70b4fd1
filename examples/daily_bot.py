"""A full-duplex agent in a Daily room, which shows the room what it says as app messages.

Pipecat's runner makes the room and the tokens, and gives the address of a page that joins it::

    DAILY_API_KEY=... python examples/daily_bot.py -t daily

Set ``DAILY_ROOM_URL`` for a room that you have. Every participant is heard, mixed together, and the
agent goes when the last one has left.

Everybody in the room receives app messages with ``"from": "agent"`` and one of::

    {"type": "word", "text": " hello", "time_secs": 2.4}
    {"type": "done"}                                   the end of an utterance
    {"type": "yield", "text": "once there was", "delay_secs": 0.32}
    {"type": "backchannel", "duration_secs": 0.48}

Environment:
    DUPLEX_CHECKPOINT: The model: ``embedded`` (default), a hub name such as
        ``kyutai/moshiko-pytorch-bf16``, or a local folder.
    DUPLEX_SLOTS: Rooms at a time (default 2).
"""

import os

from loguru import logger
from pipecat.frames.frames import (
    Frame,
    LLMFullResponseEndFrame,
    LLMTextFrame,
    OutputTransportMessageUrgentFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.types import DailyRunnerArguments
from pipecat.transports.daily.transport import DailyParams, DailyTransport
from pipecat.workers.runner import WorkerRunner

from pipecat_duplex import (
    AgentYieldedFrame,
    BackchannelFrame,
    DuplexBackend,
    DuplexLLMService,
    DuplexUserTurnStrategies,
    MonologueTextFrame,
)


class RoomCaptions(FrameProcessor):
    """Tells the room what the agent says, and how the floor changes hands."""

    def __init__(self):
        """Begin with nothing said."""
        super().__init__()
        self._time_secs = 0.0

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        """Tell the room about the frame, and pass it on."""
        await super().process_frame(frame, direction)
        if direction == FrameDirection.DOWNSTREAM and (message := self._message(frame)):
            await self.push_frame(OutputTransportMessageUrgentFrame({"from": "agent", **message}))
        await self.push_frame(frame, direction)

    def _message(self, frame: Frame) -> dict | None:
        if isinstance(frame, MonologueTextFrame):
            self._time_secs = frame.time_secs
        elif isinstance(frame, LLMTextFrame):
            return {"type": "word", "text": frame.text, "time_secs": self._time_secs}
        elif isinstance(frame, LLMFullResponseEndFrame):
            return {"type": "done"}
        elif isinstance(frame, AgentYieldedFrame):
            return {"type": "yield", "text": frame.text, "delay_secs": frame.delay_secs}
        elif isinstance(frame, BackchannelFrame):
            return {"type": "backchannel", "duration_secs": frame.duration_secs}
        return None


backend: DuplexBackend | None = None
"""Where sessions come from, if not from the model of this process."""


async def shared_backend() -> DuplexBackend:
    """Return the one model of this process; the first room loads it."""
    if backend is not None:
        return backend
    from pipecat_duplex.engine import Engine

    checkpoint = os.getenv("DUPLEX_CHECKPOINT", "embedded")
    return await Engine.shared(checkpoint, slots=int(os.getenv("DUPLEX_SLOTS", "2")))


def create_transport(room_url: str, token: str | None) -> DailyTransport:
    """Return the transport into a room."""
    return DailyTransport(
        room_url,
        token,
        "Nora",
        DailyParams(
            audio_in_enabled=True,
            # The room as one voice. Tracks of their own would come one after another, and the
            # model's time would run as many times too fast.
            audio_in_user_tracks=False,
            audio_out_enabled=True,
        ),
    )


async def run_bot(transport: DailyTransport, *, handle_sigint: bool = False):
    """Stay in a room until the last participant has left."""
    duplex = DuplexLLMService(backend=await shared_backend())
    user_aggregator, assistant_aggregator = LLMContextAggregatorPair(
        LLMContext(),
        # The service's own. Pipecat's default would load a turn model for each room.
        user_params=LLMUserAggregatorParams(user_turn_strategies=DuplexUserTurnStrategies()),
    )
    pipeline = Pipeline(
        [
            transport.input(),
            user_aggregator,
            duplex,  # hears the room, speaks, and yields when spoken over
            RoomCaptions(),
            transport.output(),
            assistant_aggregator,
        ]
    )
    worker = PipelineWorker(
        pipeline,
        params=PipelineParams(
            audio_in_sample_rate=24_000, audio_out_sample_rate=24_000, enable_metrics=True
        ),
    )
    present: set[str] = set()

    @transport.event_handler("on_participant_joined")
    async def on_participant_joined(transport, participant):
        present.add(participant["id"])
        logger.info(f"{participant['id']} joined, {len(present)} in the room")

    @transport.event_handler("on_participant_left")
    async def on_participant_left(transport, participant, reason):
        present.discard(participant["id"])
        logger.info(f"{participant['id']} left ({reason}), {len(present)} in the room")
        if not present:
            await worker.cancel(reason="the room is empty")

    @transport.event_handler("on_error")
    async def on_error(transport, error):
        await worker.cancel(reason=f"Daily: {error}")

    runner = WorkerRunner(handle_sigint=handle_sigint)
    await runner.add_workers(worker)
    await runner.run()


async def bot(runner_args: DailyRunnerArguments):
    """Join one room. Pipecat's runner calls this for each one."""
    transport = create_transport(runner_args.room_url, runner_args.token)
    await run_bot(transport, handle_sigint=runner_args.handle_sigint)


if __name__ == "__main__":
    from pipecat.runner.run import main

    main()
