"""The pipeline in which a recording, or a scripted user, talks with the model."""

import asyncio
from collections.abc import Awaitable, Callable

from pipecat.frames.frames import ErrorFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.workers.runner import WorkerRunner

from pipecat_duplex.service.service import DuplexLLMService
from pipecat_duplex.service.user_turns import DuplexUserTurnStrategies
from pipecat_duplex.session import SAMPLE_RATE_HZ, DuplexError

END_SECS = 1.0
"""Feeding ends the pipeline: what has not been fed this long after its end never will be."""


async def run_pipeline(
    microphone: BaseInputTransport,
    service: DuplexLLMService,
    loudspeaker: BaseOutputTransport,
    *,
    feed: Callable[[], Awaitable[None]],
    on_error: Callable[[str], None],
    enable_metrics: bool = False,
) -> None:
    """Hold a conversation: feed it once the pipeline has started, stop it after the last answer.

    Args:
        microphone: Where the user's audio comes from.
        service: The agent.
        loudspeaker: Where its voice goes.
        feed: Gives the microphone all that the user says.
        on_error: Called with the message of each error in the pipeline.
        enable_metrics: Whether metrics frames pass the loudspeaker.

    Raises:
        DuplexError: The pipeline ended before everything was fed.
    """
    aggregators = LLMContextAggregatorPair(
        LLMContext(),
        # The service's own. Pipecat's default would load a turn model for each run.
        user_params=LLMUserAggregatorParams(user_turn_strategies=DuplexUserTurnStrategies()),
    )
    worker = PipelineWorker(
        Pipeline([microphone, aggregators.user(), service, loudspeaker, aggregators.assistant()]),
        params=PipelineParams(
            audio_in_sample_rate=SAMPLE_RATE_HZ,
            audio_out_sample_rate=SAMPLE_RATE_HZ,
            enable_metrics=enable_metrics,
        ),
        idle_timeout_secs=None,
        enable_rtvi=False,
    )
    ready = asyncio.Event()

    @worker.event_handler("on_pipeline_started")
    async def on_pipeline_started(_, frame):
        ready.set()

    @worker.event_handler("on_pipeline_error")
    async def on_pipeline_error(_, frame: ErrorFrame):
        on_error(str(frame.error))

    async def feed_all():
        await ready.wait()
        try:
            await feed()
        finally:
            await worker.stop_when_done()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    feeding = asyncio.create_task(feed_all())
    try:
        await runner.run()
        _stop_if_cancelled()
        done, _ = await asyncio.wait([feeding], timeout=END_SECS)
        if not done:
            raise DuplexError("the pipeline ended by itself: --verbose shows why")
        feeding.result()
    finally:
        feeding.cancel()


def _stop_if_cancelled() -> None:
    """Go on with a Ctrl-C: the runner cleans up after one, and keeps it to itself."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
