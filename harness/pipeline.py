"""A real pipeline around the service, with what came out of it, for tests.

Fast runs are in lock-step: time is the user's audio, and the next chunk goes in when the steps
before have come out. Real-time runs go by the wall clock, through an output transport that plays
at the speed of sound cards.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InputAudioRawFrame,
    OutputAudioRawFrame,
    StartFrame,
    TTSAudioRawFrame,
)
from pipecat.observers.base_observer import BaseObserver
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner

from pipecat_duplex import DuplexBackend, DuplexLLMService
from pipecat_duplex.conversation.clock import ClockSettings
from pipecat_duplex.conversation.pcm import float_to_pcm16, level_db
from pipecat_duplex.session import STEP_SECS

AUDIO = Path(__file__).parents[1] / "examples" / "audio"
CHUNK_SECS = 0.02


def speech(name: str, rate_hz: int = 16_000) -> np.ndarray:
    """Return a recording from examples/audio, float32 mono, at any rate."""
    from scipy.signal import resample_poly

    pcm, file_rate_hz = soundfile.read(AUDIO / f"{name}.wav", dtype="float32")
    divisor = math.gcd(rate_hz, file_rate_hz)
    return resample_poly(pcm, rate_hz // divisor, file_rate_hz // divisor).astype(np.float32)


def silence(secs: float, rate_hz: int = 16_000) -> np.ndarray:
    return np.zeros(round(secs * rate_hz), np.float32)


@dataclass
class Seen:
    """One frame that passed a tap.

    Parameters:
        frame: The frame.
        direction: Its direction.
        time_secs: When, on a steady clock.
    """

    frame: Frame
    direction: FrameDirection
    time_secs: float


class Tap(FrameProcessor):
    """Notes every frame that passes."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen: list[Seen] = []
        self.started = asyncio.Event()

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        await super().process_frame(frame, direction)
        self.seen.append(Seen(frame, direction, time.monotonic()))
        if isinstance(frame, StartFrame):
            self.started.set()
        await self.push_frame(frame, direction)

    def of(self, *types: type[Frame], direction: FrameDirection | None = None) -> list[Frame]:
        """Return the frames of these types, in order."""
        return [
            seen.frame
            for seen in self.seen
            if isinstance(seen.frame, types) and direction in (None, seen.direction)
        ]

    def times(self, frame_type: type[Frame]) -> list[float]:
        return [seen.time_secs for seen in self.seen if isinstance(seen.frame, frame_type)]

    def audio_pts_secs(self) -> list[float]:
        return [frame.pts / 1e9 for frame in self.of(TTSAudioRawFrame)]


class Speaker(BaseOutputTransport):
    """An output transport that plays into a list, as fast as sound plays."""

    def __init__(self, *, realtime: bool):
        super().__init__(TransportParams(audio_out_enabled=True))
        self._realtime = realtime
        self._next_secs = 0.0
        self.played: list[tuple[float, bytes]] = []

    async def start(self, frame: StartFrame):
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        now = time.monotonic()
        self.played.append((now, frame.audio))
        if self._realtime:
            self._next_secs = max(now, self._next_secs) + frame.num_frames / frame.sample_rate
            await asyncio.sleep(self._next_secs - frame.num_frames / frame.sample_rate - now)
        return True


@dataclass
class Conversation:
    """What came of a conversation.

    Parameters:
        service: The service.
        near: What passed right after the service.
        far: What passed behind the output transport.
        near_user: What came up to the user's side of the service.
        speaker: What was played.
        context: The context at the end.
        events: The service's event handlers that were called, with their arguments.
    """

    service: DuplexLLMService
    near: Tap
    far: Tap
    near_user: Tap
    speaker: Speaker
    context: LLMContext
    events: list[tuple] = field(default_factory=list)

    def event_names(self) -> list[str]:
        return [name for name, *_ in self.events]

    def assistant_words(self) -> list[str]:
        return [m["content"] for m in self.context.messages if m["role"] == "assistant"]


EVENTS = (
    "on_session_started",
    "on_session_ended",
    "on_session_ending",
    "on_session_moving",
    "on_session_moved",
    "on_user_started",
    "on_user_stopped",
    "on_agent_started",
    "on_agent_stopped",
    "on_yield",
    "on_backchannel",
    "on_said",
)


async def converse(
    backend: DuplexBackend,
    audio: np.ndarray,
    *,
    rate_hz: int = 16_000,
    channels: int = 1,
    out_rate_hz: int | None = None,
    realtime: bool = False,
    observers: Sequence[BaseObserver] = (),
    processors: Sequence[FrameProcessor] = (),
    gaps: Sequence[tuple[float, float]] = (),
    inject: dict[float, Callable[[], Frame]] | None = None,
    lobby_secs: float = 0.0,
    user_params: LLMUserAggregatorParams | None = None,
    **service_args,
) -> Conversation:
    """Hold a conversation in a real pipeline.

    Args:
        backend: Where the session comes from.
        audio: The user's audio, float32 mono.
        rate_hz: Its rate.
        channels: Send it in this many equal channels.
        out_rate_hz: The pipeline's output rate; the input's by default.
        realtime: Whether to go by the wall clock.
        observers: Observers of the pipeline.
        processors: Processors behind the output transport.
        gaps: Stretches (start and end in seconds) in which no packet is sent.
        inject: Frames to queue once the user's audio has come to these seconds.
        lobby_secs: The user comes only after this time.
        user_params: For the user aggregator.
        **service_args: For the service.

    Returns:
        What came of it.
    """
    fed_secs = 0.0
    if not realtime:
        service_args.setdefault("clock", ClockSettings(patience_secs=math.inf))
        service_args.setdefault("now_secs", lambda: fed_secs)
    service = DuplexLLMService(backend=backend, **service_args)
    context = LLMContext()
    user, assistant = LLMContextAggregatorPair(context, user_params=user_params)
    tap, far, near_user, speaker = Tap(), Tap(), Tap(), Speaker(realtime=realtime)
    conversation = Conversation(service, tap, far, near_user, speaker, context)
    for name in EVENTS:
        service.add_event_handler(name, noter(conversation.events, name))
    worker = PipelineWorker(
        Pipeline([user, near_user, service, tap, speaker, far, *processors, assistant]),
        params=PipelineParams(
            audio_in_sample_rate=rate_hz,
            audio_out_sample_rate=out_rate_hz or rate_hz,
            enable_metrics=True,
        ),
        observers=list(observers),
        idle_timeout_secs=None,
    )
    inject = dict(inject or {})

    async def feed():
        nonlocal fed_secs
        live = True
        await tap.started.wait()
        await asyncio.sleep(lobby_secs)
        chunk = round(rate_hz * CHUNK_SECS)
        begun_secs = time.monotonic()
        for first in range(0, len(audio) - chunk + 1, chunk):
            fed_secs = (first + chunk) / rate_hz
            for at_secs in [at for at in inject if at <= fed_secs]:
                await worker.queue_frame(inject.pop(at_secs)())
            if realtime:
                await asyncio.sleep(max(0.0, begun_secs + fed_secs - time.monotonic()))
            if any(start <= fed_secs < end for start, end in gaps):
                continue
            pcm16 = float_to_pcm16(np.repeat(audio[first : first + chunk], channels))
            await worker.queue_frame(InputAudioRawFrame(pcm16, rate_hz, channels))
            if not realtime and live:
                live = await settle(service, fed_secs)
        await worker.queue_frame(EndFrame())

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await asyncio.gather(runner.run(), feed())
    return conversation


async def settle(service: DuplexLLMService, fed_secs: float) -> bool:
    """Wait until the steps of the audio fed so far have come out; tell whether they do."""
    deadline = time.monotonic() + 5.0
    while service.step_count < math.floor(fed_secs / STEP_SECS + 1e-6):
        if not service.is_usable or time.monotonic() > deadline:
            return False
        await asyncio.sleep(0)
    # Let what came out reach the end of the pipeline.
    for _ in range(40):
        await asyncio.sleep(0)
    return True


def noter(events: list[tuple], name: str):
    async def note(_service, *args):
        events.append((name, *args))

    return note


def is_sound(frame: TTSAudioRawFrame) -> bool:
    return level_db(np.frombuffer(frame.audio, np.int16) / np.float32(32768)) > -50
