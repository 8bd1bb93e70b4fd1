"""An app around a realtime service, in the shape of Pipecat's own examples, with ours in its place.

The pipeline is that of Pipecat's ``examples/realtime/realtime-openai.py``: context with tools and a
first message, aggregators, observers, handlers of turns. On top, everything that watches a pipeline
is on: RTVI, turn and latency observers, the audio buffer, OpenTelemetry tracing.
"""

import asyncio

import numpy as np
import pytest
from pipecat.frames.frames import LLMRunFrame, LLMSetToolsFrame, OutputTransportMessageUrgentFrame
from pipecat.observers.loggers.transcription_log_observer import TranscriptionLogObserver
from pipecat.observers.turn_tracking_observer import TurnTrackingObserver
from pipecat.observers.user_bot_latency_observer import UserBotLatencyObserver
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker, ProcessorUnusablePolicy
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.audio.audio_buffer_processor import AudioBufferProcessor
from pipecat.services.llm_service import FunctionCallParams
from pipecat.utils.tracing.setup import setup_tracing
from pipecat.workers.runner import WorkerRunner

from pipecat_duplex import DuplexLLMService
from pipecat_duplex.scripted import Script, ScriptedBackend
from tests.pipeline import Tap, silence, speech
from tests.stalls import by_the_clock
from tests.test_quickstart import Room

pytest.importorskip("opentelemetry.sdk", reason="needs OpenTelemetry's SDK")

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import get_tracer_provider

FIRST = {"role": "developer", "content": "Say hello!"}
STORY = " ".join(["once there was a small cat who wanted to see the sea"] * 6)


async def get_current_weather(params: FunctionCallParams, location: str):
    """Get the current weather.

    Args:
        location: The city.
    """
    await params.result_callback({"conditions": "nice"})


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    setup_tracing("test", exporter=exporter)  # A process takes one exporter.
    return exporter


@pytest.mark.slow
@by_the_clock
async def test_every_part_of_a_realtime_app_sees_what_it_should(exporter: InMemorySpanExporter):
    exporter.clear()
    user = [silence(3), speech("barge_in"), silence(4)]
    transport = Room(np.concatenate(user))
    script = Script(opening=STORY, replies=["all right"], yield_steps=8)

    # In Pipecat's example: llm = OpenAIRealtimeLLMService(api_key=…, settings=…)
    llm = DuplexLLMService(
        backend=ScriptedBackend(script), settings=DuplexLLMService.Settings(text_temperature=0.5)
    )

    context = LLMContext([FIRST], [get_current_weather])
    user_aggregator, assistant_aggregator = LLMContextAggregatorPair(context)
    audio_buffer = AudioBufferProcessor(num_channels=2, auto_start_recording=True)
    tap = Tap()
    turns, latency = TurnTrackingObserver(), UserBotLatencyObserver()
    worker = PipelineWorker(
        Pipeline(
            [
                transport.input(),
                user_aggregator,
                llm,
                tap,
                transport.output(),
                audio_buffer,
                assistant_aggregator,
            ]
        ),
        params=PipelineParams(
            audio_in_sample_rate=16_000,
            audio_out_sample_rate=16_000,
            enable_metrics=True,
            enable_usage_metrics=True,
        ),
        observers=[TranscriptionLogObserver(), turns, latency],
        processor_unusable_policy=ProcessorUnusablePolicy.END,
        enable_tracing=True,
        conversation_id="a-call",
    )
    seen: list[tuple] = []
    for source, names in {
        user_aggregator: ("on_user_turn_started", "on_user_turn_stopped"),
        assistant_aggregator: ("on_assistant_turn_started", "on_assistant_turn_stopped"),
        turns: ("on_turn_started", "on_turn_ended"),
        latency: ("on_latency_measured",),
        audio_buffer: ("on_track_audio_data",),
    }.items():
        for name in names:
            source.add_event_handler(name, note(seen, name))

    @transport.event_handler("on_client_disconnected")
    async def on_client_disconnected(transport, client):
        await worker.stop_when_done()

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    # What such apps send to begin with changes nothing, and breaks nothing.
    await worker.queue_frames([LLMRunFrame(), LLMSetToolsFrame(tools=[get_current_weather])])
    await asyncio.wait_for(runner.run(), 120)

    names = [name for name, *_ in seen]
    # Aggregators: the user's turn opened and closed, and what was heard is in the context.
    assert names.count("on_user_turn_started") == names.count("on_user_turn_stopped") >= 1
    assistant = [args[0].content for name, *args in seen if name == "on_assistant_turn_stopped"]
    assert STORY.startswith(assistant[0].strip()) and assistant[0].strip() != STORY
    assert assistant[-1].strip() == "all right"
    assert context.messages[0] == FIRST
    roles = [message["role"] for message in context.messages[1:]]
    assert roles.count("assistant") == len(assistant)
    # Observers: one turn that was interrupted, and a latency for the answer.
    assert next(args[-1] for name, *args in seen if name == "on_turn_ended") is True
    assert all(args[0] > 0 for name, *args in seen if name == "on_latency_measured")
    assert "on_latency_measured" in names
    # The audio buffer: both voices.
    [(user_track, agent_track, rate_hz, _)] = [
        args for name, *args in seen if name == "on_track_audio_data"
    ]
    assert rate_hz == 16_000
    for track in (user_track, agent_track):
        assert np.abs(np.frombuffer(track, np.int16)).max() > 1000
    # RTVI: both sides speak, and the words.
    sent = {
        frame.message["type"]
        for frame in tap.of(OutputTransportMessageUrgentFrame)
        if isinstance(frame.message, dict)
    }
    assert {"user-started-speaking", "bot-started-speaking", "bot-output", "metrics"} <= sent
    # Tracing: the conversation, and its turns.
    get_tracer_provider().force_flush()
    spans = {span.name: span for span in exporter.get_finished_spans()}
    assert spans["conversation"].attributes["conversation.id"] == "a-call"
    turn_spans = [span for span in exporter.get_finished_spans() if span.name == "turn"]
    assert turn_spans[0].attributes["turn.was_interrupted"] is True
    assert len(turn_spans) == names.count("on_turn_started")
    assert spans["llm_setup"].attributes["gen_ai.provider.name"] == "pipecat_duplex"
    responses = [s for s in exporter.get_finished_spans() if s.name == "llm_response"]
    assert [span.attributes["output"] for span in responses] == [text.strip() for text in assistant]
    assert responses[0].attributes["response.status"] == "incomplete"
    assert responses[-1].attributes["response.status"] == "completed"
    assert responses[0].attributes["gen_ai.request.model"] == "embedded"


def note(seen: list[tuple], name: str):
    async def handler(_source, *args):
        seen.append((name, *args))

    return handler
