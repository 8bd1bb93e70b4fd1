"""Where users and agents meet: the same microphone and loudspeaker for all, by the clock."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np
from pipecat.clocks.system_clock import SystemClock
from pipecat.frames.frames import (
    ErrorFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMTextFrame,
    MetricsFrame,
    OutputAudioRawFrame,
    ProposedUserStoppedSpeakingFrame,
    StartFrame,
    TranscriptionFrame,
    UserStoppedSpeakingFrame,
)
from pipecat.metrics.metrics import TurnMetricsData
from pipecat.observers.base_observer import BaseObserver, FramePushed
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import LLMService
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner

from benchmarks.cascade.agents import Agent
from benchmarks.duplex.dialogue import Dialogue
from benchmarks.duplex.users import User
from pipecat_duplex import DuplexLLMService
from pipecat_duplex.conversation.pcm import float_to_pcm16, pcm16_to_float
from pipecat_duplex.conversation.resampler import Resampler
from pipecat_duplex.service.frames import MonologueTextFrame
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SECS

IN_RATE_HZ = 16_000
"""What Whisper, Silero and smart-turn are made for."""

CHUNK_SECS = 0.02
LATE_SECS = 0.08
LAST_SECS = 1.0

DECIDED, TRANSCRIBED, ASKED, WROTE, INTERRUPTED, TURN_OVER = (
    "decided",
    "transcribed",
    "asked",
    "wrote",
    "interrupted",
    "turn_over",
)


@dataclass(frozen=True)
class Note:
    """Something that happened in a pipeline.

    Attributes:
        what: ``decided`` (the turn detector or the model takes the user's turn to be over),
            ``transcribed``, ``turn_over`` (so the aggregator says), ``asked`` (the LLM has the
            context), ``wrote`` (a token of its), ``interrupted``.
        at_secs: When, in seconds of the conversation.
        text: The words, if there are any.
    """

    what: str
    at_secs: float
    text: str = ""


@dataclass
class Call:
    """A conversation that is over.

    Attributes:
        dialogue: Both voices, the agent's words and the user's moments.
        notes: What happened when, in order.
        messages: Of the context.
        transcripts: What ``on_user_transcript`` told.
        said: What ``on_said`` told.
        chunks: Pieces of the user's audio that were given to the pipeline.
        late_chunks: Those that were given more than 80 ms late: the event loop was held up.
    """

    dialogue: Dialogue
    notes: list[Note]
    messages: list[dict]
    transcripts: list[tuple[str, float, float, str]]
    said: list[tuple[str, str]]
    chunks: int = 0
    late_chunks: int = 0


async def hold(user: User, agent: Agent) -> Call:
    """Hold a conversation at the speed of speech.

    Args:
        user: Who talks.
        agent: Whom they talk to.
    """
    stage = _Stage(user, agent)
    await stage.run()
    return stage.call()


@dataclass
class _Origin:
    """Second 0 of the conversation, on the machine's steady clock."""

    secs: float = field(default_factory=time.monotonic)

    @property
    def now_secs(self) -> float:
        return time.monotonic() - self.secs


class _Microphone(BaseInputTransport):
    """Gives the pipeline what the user says, 20 ms at a time, when it has been said."""

    def __init__(self, user: User, origin: _Origin):
        super().__init__(TransportParams(audio_in_enabled=True, audio_in_sample_rate=IN_RATE_HZ))
        self._user = user
        self._origin = origin
        self._resampler = Resampler(SAMPLE_RATE_HZ, IN_RATE_HZ)
        self.chunks = 0
        self.late_chunks = 0

    async def start(self, frame: StartFrame):
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def feed(self) -> None:
        self._origin.secs = time.monotonic()
        for step in self._user.frames():
            # A user hears, decides and speaks in steps of 80 ms; their packets are shorter.
            for chunk in np.split(step, round(STEP_SECS / CHUNK_SECS)):
                self.chunks += 1
                await self._wait(self.chunks * CHUNK_SECS)
                pcm = float_to_pcm16(self._resampler.push(chunk))
                await self.push_audio_frame(InputAudioRawFrame(pcm, IN_RATE_HZ, num_channels=1))

    async def _wait(self, due_secs: float) -> None:
        await asyncio.sleep(max(0.0, due_secs - self._origin.now_secs))
        self.late_chunks += self._origin.now_secs > due_secs + LATE_SECS


class _Loudspeaker(BaseOutputTransport):
    """Plays at the speed of sound cards, to the user's ear."""

    def __init__(self, user: User, origin: _Origin):
        super().__init__(
            TransportParams(
                audio_out_enabled=True,
                audio_out_sample_rate=SAMPLE_RATE_HZ,
                audio_out_10ms_chunks=2,
                audio_out_end_silence_secs=0,
            )
        )
        self._ear = user.ear
        self._origin = origin
        self._free_secs = 0.0

    async def start(self, frame: StartFrame):
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        if isinstance(frame, MonologueTextFrame):
            self._ear.note_piece(self._origin.now_secs, frame.step_index, frame.text)
        await super().process_frame(frame, direction)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        now_secs = self._origin.now_secs
        self._ear.hear(now_secs, pcm16_to_float(frame.audio, frame.num_channels))
        self._free_secs = max(now_secs, self._free_secs) + frame.num_frames / frame.sample_rate
        await asyncio.sleep(self._free_secs - now_secs)
        return True


class _Observer(BaseObserver):
    """Takes notes of frames, by the pipeline's own clock."""

    def __init__(self, note: Callable[[str, int, str], None]):
        super().__init__()
        self._note = note
        self._seen: set[int] = set()

    async def on_push_frame(self, data: FramePushed):
        frame = data.frame
        what, text = _noted(frame)
        if what is None or frame.id in self._seen:
            return
        if what == ASKED and not _is_llm(data.destination):
            return
        if what == WROTE and not _is_llm(data.source):
            return
        self._seen.add(frame.id)
        self._note(what, data.timestamp, text)


def _is_llm(processor: FrameProcessor) -> bool:
    # The duplex service is one for Pipecat.
    return isinstance(processor, LLMService) and not isinstance(processor, DuplexLLMService)


def _noted(frame: Frame) -> tuple[str | None, str]:
    match frame:
        case ProposedUserStoppedSpeakingFrame():
            return DECIDED, ""
        case MetricsFrame():
            complete = (isinstance(d, TurnMetricsData) and d.is_complete for d in frame.data)
            return (DECIDED if any(complete) else None), ""
        case TranscriptionFrame():
            return TRANSCRIBED, frame.text
        case UserStoppedSpeakingFrame():
            return TURN_OVER, ""
        case LLMContextFrame():
            return ASKED, ""
        case LLMTextFrame():
            return WROTE, frame.text
        case InterruptionFrame():
            return INTERRUPTED, ""
        case _:
            return None, ""


class _Stage:
    """One conversation in its pipeline."""

    def __init__(self, user: User, agent: Agent):
        self._user = user
        self._agent = agent
        self._origin = _Origin()
        self._clock = SystemClock()
        self._microphone = _Microphone(user, self._origin)
        self._loudspeaker = _Loudspeaker(user, self._origin)
        self._raw_notes: list[tuple[str, int, str]] = []
        self._failure: str | None = None

    async def run(self) -> None:
        agent = self._agent
        worker = PipelineWorker(
            Pipeline([self._microphone, *agent.before, self._loudspeaker, *agent.after]),
            params=PipelineParams(
                audio_in_sample_rate=IN_RATE_HZ,
                audio_out_sample_rate=SAMPLE_RATE_HZ,
                enable_metrics=True,
            ),
            observers=[_Observer(lambda *note: self._raw_notes.append(note))],
            clock=self._clock,
            idle_timeout_secs=None,
            enable_rtvi=False,
        )
        ready = asyncio.Event()

        @worker.event_handler("on_pipeline_started")
        async def on_pipeline_started(_, frame):
            ready.set()

        @worker.event_handler("on_pipeline_error")
        async def on_pipeline_error(_, frame: ErrorFrame):
            self._failure = self._failure or str(frame.error)

        await run_fed(worker, ready, self._feed)

    async def _feed(self) -> None:
        await self._microphone.feed()
        await asyncio.sleep(LAST_SECS)

    def call(self) -> Call:
        agent = self._agent
        dialogue = self._user.dialogue()
        dialogue.failure = self._failure
        if agent.watched is not None and agent.service is not None:
            for timing in agent.watched.timings:
                dialogue.compute_secs.append(timing.compute_secs)
                dialogue.late_steps += timing.waited_secs + timing.compute_secs > STEP_SECS
            dialogue.dropped_steps = agent.service.dropped_output_steps
        return Call(
            dialogue,
            self._notes(),
            [dict(message) for message in agent.context.get_messages()],
            agent.transcripts,
            agent.said,
            self._microphone.chunks,
            self._microphone.late_chunks,
        )

    def _notes(self) -> list[Note]:
        # The pipeline's clock began earlier than the conversation.
        ahead_secs = self._origin.now_secs - self._clock.get_time() / 1e9
        notes = [Note(what, at / 1e9 + ahead_secs, text) for what, at, text in self._raw_notes]
        return sorted(notes, key=lambda note: note.at_secs)


async def run_fed(
    worker: PipelineWorker, ready: asyncio.Event, feed: Callable[[], Awaitable[None]]
) -> None:
    """Run a pipeline until everything was fed.

    Args:
        worker: The pipeline's.
        ready: Set when it has started.
        feed: Gives it all that the user says.
    """

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
    finally:
        feeding.cancel()
    if feeding.done() and not feeding.cancelled():
        feeding.result()
