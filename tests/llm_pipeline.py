"""A stock pipeline with an LLM in front of the service, in lock step: no test waits for a clock.

The recogniser and the LLM are doubles on Pipecat's own base classes; their delays are counted in
steps of the conversation.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pipecat.audio.vad.vad_analyzer import VADAnalyzer, VADParams
from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    StartFrame,
    STTMetadataFrame,
    TranscriptionFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import FunctionCallFromLLM, LLMService
from pipecat.services.settings import LLMSettings
from pipecat.workers.runner import WorkerRunner

from pipecat_duplex import DuplexLLMService
from pipecat_duplex.conversation.clock import ClockSettings
from pipecat_duplex.conversation.pcm import float_to_pcm16
from pipecat_duplex.session import STEP_SECS
from tests.pipeline import CHUNK_SECS, Speaker, Tap, noter, settle
from tests.voices import StepSpeaker

RATE_HZ = 16_000


class LevelDetector(VADAnalyzer):
    """A voice is what is loud."""

    def __init__(self):
        super().__init__(
            params=VADParams(confidence=0.5, start_secs=0.08, stop_secs=0.16, min_volume=0.0)
        )

    def num_frames_required(self) -> int:
        return 320

    def voice_confidence(self, buffer: bytes) -> float:
        pcm = np.frombuffer(buffer, np.int16) / 32768
        return 1.0 if np.sqrt(np.mean(pcm**2)) > 0.01 else 0.0


class Clock:
    """The conversation's time, in steps."""

    def __init__(self):
        self.service: DuplexLLMService | None = None

    @property
    def now(self) -> int:
        assert self.service is not None
        return self.service.step_count

    async def wait(self, steps: int) -> None:
        await self.wait_until(self.now + steps)

    async def wait_until(self, until: int) -> None:
        assert self.service is not None
        deadline_secs = time.monotonic() + 30.0
        while self.service.step_count < until:
            if time.monotonic() > deadline_secs:
                raise TimeoutError(f"step {until} has not come: {self.service.step_count}")
            await asyncio.sleep(0)


class ScriptedSTT(FrameProcessor):
    """Tells what was said in each stretch of voice, after a delay in steps."""

    def __init__(self, clock: Clock, texts: Sequence[tuple[str | None, int]]):
        super().__init__()
        self._clock = clock
        self._texts = list(texts)
        self._queue: asyncio.Queue[tuple[str | None, int]] = asyncio.Queue()  # Text and due step.
        self._task = None

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, StartFrame):
            await self.push_frame(STTMetadataFrame(service_name="stt", ttfs_p99_latency=1.0))
            self._task = self.create_task(self._transcribe())
        elif isinstance(frame, VADUserStoppedSpeakingFrame) and self._texts:
            text, delay_steps = self._texts.pop(0)
            self._queue.put_nowait((text, self._clock.now + delay_steps))
        elif isinstance(frame, EndFrame) and self._task:
            await self.cancel_task(self._task)

    async def _transcribe(self):
        while True:
            text, due_step = await self._queue.get()
            await self._clock.wait_until(due_step)
            if text is not None:
                frame = TranscriptionFrame(text, "user", "now", finalized=True)
                await self.push_frame(frame)


@dataclass
class Reply:
    """What the LLM answers: pieces with a pause in steps before each, or a call of a function."""

    pieces: Sequence[tuple[int, str]] = ()
    calls: str | None = None


class ScriptedLLM(LLMService):
    """An LLM on Pipecat's base class, whose answers follow a script."""

    def __init__(self, clock: Clock, replies: Sequence[Reply]):
        names = (
            "model system_instruction temperature max_tokens top_p top_k frequency_penalty "
            "presence_penalty seed filter_incomplete_user_turns user_turn_completion_config"
        )
        super().__init__(settings=LLMSettings(**dict.fromkeys(names.split())))
        self._clock = clock
        self._replies = list(replies)
        self.contexts: list[list] = []
        self.cancelled = 0
        self._called = 0

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        await super().process_frame(frame, direction)
        if not isinstance(frame, LLMContextFrame):
            await self.push_frame(frame, direction)
            return
        self.contexts.append([dict(message) for message in frame.context.get_messages()])
        reply = self._replies.pop(0) if self._replies else Reply([(1, "fine ")])
        await self.push_frame(LLMFullResponseStartFrame())
        try:
            for delay_steps, piece in reply.pieces:
                await self._clock.wait(delay_steps)
                await self.push_frame(LLMTextFrame(piece))
            if reply.calls:
                self._called += 1
                call = FunctionCallFromLLM(reply.calls, f"call-{self._called}", {}, frame.context)
                await self.run_function_calls([call])
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            await self.push_frame(LLMFullResponseEndFrame())


@dataclass
class Talk:
    """What came of a conversation."""

    context: LLMContext
    llm: Any
    service: DuplexLLMService
    near: Tap
    far: Tap
    speaker: Speaker
    events: list[tuple] = field(default_factory=list)
    worker: Any = None
    pair: Any = None

    def messages(self) -> list[tuple[str, str]]:
        return [
            (message["role"], message["content"])
            for message in self.context.get_messages()
            if isinstance(message.get("content"), str) and message["role"] in ("user", "assistant")
        ]

    def of(self, name: str) -> list[tuple]:
        return [rest for event, *rest in self.events if event == name]


NOTED = (
    "on_said",
    "on_yield",
    "on_backchannel",
    "on_user_transcript",
    "on_agent_started",
    "on_agent_stopped",
)


def user_audio(*parts: tuple[float, bool]) -> np.ndarray:
    """Return audio that is loud or silent for so many seconds each."""
    rng = np.random.default_rng(1)
    return np.concatenate(
        [0.1 * rng.standard_normal(round(secs * RATE_HZ)) * loud for secs, loud in parts]
    ).astype(np.float32)


async def talk(
    backend,
    audio: np.ndarray,
    *,
    transcripts: Sequence[tuple[str | None, int]] | None,
    replies: Sequence[Reply],
    prepare: Callable[[Talk], None] = lambda _: None,
    at_secs: dict[float, Callable[[Talk], Awaitable[None]]] | None = None,
    own: bool = False,
    llm: LLMService | None = None,
    context: LLMContext | None = None,
    detector: VADAnalyzer | None = None,
    tts: FrameProcessor | None = None,
    behind: Callable[[DuplexLLMService], Sequence[FrameProcessor]] = lambda _: (),
    wrap: Callable[[DuplexLLMService], FrameProcessor] = lambda service: service,
    **service_args,
) -> Talk:
    """Hold a conversation.

    No ``transcripts`` leaves the STT out, ``own`` the LLM. ``llm`` puts another in its place, and
    ``tts`` speaks for the agent. ``behind`` makes nodes that stand right behind the service,
    ``wrap`` puts it into another.
    """
    fed_secs = 0.0
    clock = Clock()
    service = DuplexLLMService(
        backend=backend,
        clock=ClockSettings(patience_secs=math.inf),
        now_secs=lambda: fed_secs,
        vad_analyzer=detector or LevelDetector(),
        **service_args,
    )
    clock.service = service
    llm = llm or ScriptedLLM(clock, replies)
    context = context or LLMContext()
    pair = LLMContextAggregatorPair(context)
    user, assistant = pair
    stt = [] if transcripts is None else [ScriptedSTT(clock, transcripts)]
    near, far = Tap(), Tap()
    speaker = StepSpeaker(clock) if tts else Speaker(realtime=False)
    result = Talk(context, llm, service, near, far, speaker)
    for name in NOTED:
        service.add_event_handler(name, noter(result.events, name))
    prepare(result)
    front = [*stt, user] if own else [*stt, user, llm]
    worker = PipelineWorker(
        Pipeline(
            [
                *front,
                wrap(service),
                *behind(service),
                near,
                *([tts] if tts else []),
                speaker,
                far,
                assistant,
            ]
        ),
        params=PipelineParams(audio_in_sample_rate=RATE_HZ, audio_out_sample_rate=RATE_HZ),
        idle_timeout_secs=None,
    )
    result.worker, result.pair = worker, pair
    todo = dict(at_secs or {})

    async def feed():
        nonlocal fed_secs
        await near.started.wait()
        chunk = round(RATE_HZ * CHUNK_SECS)
        for first in range(0, len(audio) - chunk + 1, chunk):
            fed_secs = (first + chunk) / RATE_HZ
            for due in [each for each in todo if each <= fed_secs]:
                await todo.pop(due)(result)
            pcm16 = float_to_pcm16(audio[first : first + chunk])
            await worker.queue_frame(InputAudioRawFrame(pcm16, RATE_HZ, 1))
            if first % (4 * chunk) == 0 and not await settle(service, fed_secs):
                break
        await worker.queue_frame(EndFrame())

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await asyncio.gather(runner.run(), feed())
    return result


def interruptions(tap: Tap) -> int:
    return len(tap.of(InterruptionFrame))


__all__ = ["STEP_SECS", "Reply", "Talk", "interruptions", "talk", "user_audio"]
