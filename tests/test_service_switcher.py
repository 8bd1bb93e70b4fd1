"""A cascade takes over from a service that can do no more, by Pipecat's own switcher."""

import asyncio

import numpy as np
import pytest
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import (
    EndFrame,
    InputAudioRawFrame,
    LLMContextFrame,
    LLMServiceMetadataFrame,
    LLMTextFrame,
    TranscriptionFrame,
    UserStoppedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.service_switcher import ServiceSwitcher, ServiceSwitcherStrategyFailover
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.workers.runner import WorkerRunner

from harness.loopback_llm import serving_llm
from pipecat_duplex import DuplexLLMService
from pipecat_duplex.conversation.pcm import float_to_pcm16
from pipecat_duplex.scripted import Script, ScriptedBackend
from pipecat_duplex.session import AtCapacity
from tests.pipeline import Speaker, Tap, silence, speech
from tests.stalls import by_the_clock
from tests.voices import ToneTTS

RATE_HZ = 16_000


class SpeechToText(FrameProcessor):
    """Hears a text whenever the user falls silent, "hello" if there is none left."""

    def __init__(self, *texts: str):
        super().__init__()
        self._texts = list(texts)

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)
        if isinstance(frame, VADUserStoppedSpeakingFrame):
            text = self._texts.pop(0) if self._texts else "hello"
            await self.push_frame(TranscriptionFrame(text, "user", "now"))


class Cascade(FrameProcessor):
    """Answers each context that it is given."""

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMContextFrame) and direction is FrameDirection.DOWNSTREAM:
            await self.push_frame(LLMTextFrame("the cascade answers"))
        else:
            await self.push_frame(frame, direction)


class TakenBackend(ScriptedBackend):
    """Has one slot, which somebody else takes as soon as it is free."""

    async def open(self, config):
        if self.sessions:
            raise AtCapacity("all 1 slots are taken")
        return await super().open(config)


async def run_fed(worker: PipelineWorker, tap: Tap, audio: np.ndarray) -> None:
    """Run a pipeline on a recording, by the clock."""

    async def feed():
        await tap.started.wait()
        begun_secs = asyncio.get_running_loop().time()
        for first in range(0, len(audio) - 320, 320):
            due_secs = begun_secs + first / RATE_HZ
            await asyncio.sleep(max(0.0, due_secs - asyncio.get_running_loop().time()))
            pcm16 = float_to_pcm16(audio[first : first + 320])
            await worker.queue_frame(InputAudioRawFrame(pcm16, RATE_HZ, 1))
        await worker.queue_frame(EndFrame())

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await asyncio.gather(runner.run(), feed())


@pytest.mark.slow
@by_the_clock
async def test_a_cascade_takes_over_and_the_users_turns_are_told_once():
    duplex = DuplexLLMService(backend=ScriptedBackend(Script(fail_step=75)), reopen_secs=0)
    user, assistant = LLMContextAggregatorPair(
        LLMContext(), user_params=LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer())
    )
    switcher = ServiceSwitcher([duplex, Cascade()], ServiceSwitcherStrategyFailover)
    tap = Tap()
    worker = PipelineWorker(
        Pipeline([SpeechToText(), user, switcher, tap, assistant]),
        params=PipelineParams(audio_in_sample_rate=RATE_HZ, audio_out_sample_rate=RATE_HZ),
        idle_timeout_secs=None,
    )
    stops_before: list[int] = []

    @switcher.strategy.event_handler("on_service_switched")
    async def on_service_switched(strategy, service):
        stops_before.append(len(tap.of(VADUserStoppedSpeakingFrame, direction=DOWN)))
        strategies = UserTurnStrategies(stop=[SpeechTimeoutUserTurnStopStrategy()])
        await worker.queue_frame(
            LLMServiceMetadataFrame(
                service_name="cascade", is_realtime_service=False, user_turn_strategies=strategies
            )
        )

    word = speech("barge_in", RATE_HZ)
    audio = [silence(1), word, silence(6.5 - len(word) / RATE_HZ), word, silence(3)]
    await run_fed(worker, tap, np.concatenate(audio))
    assert stops_before == [1]
    assert len(tap.of(VADUserStoppedSpeakingFrame, direction=DOWN)) == 2
    assert len(tap.of(UserStoppedSpeakingFrame, direction=DOWN)) == 2
    assert [frame.text for frame in tap.of(LLMTextFrame)] == ["the cascade answers"]


@pytest.mark.slow
@by_the_clock
async def test_a_tts_takes_over_from_a_full_engine_and_the_context_stays():
    """In mid-call: the session fails, its slot is taken, and the LLM's words go to a TTS."""
    duplex = DuplexLLMService(
        backend=TakenBackend(Script(fail_step=85, reply_steps=8, replies=["mine"])),
        reopen_secs=0.1,
        settings=DuplexLLMService.Settings(words="given"),
    )
    context = LLMContext()
    user, assistant = LLMContextAggregatorPair(
        context, user_params=LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer())
    )
    tts = ToneTTS()
    switcher = ServiceSwitcher([duplex, tts], ServiceSwitcherStrategyFailover)
    tap = Tap()
    async with serving_llm(["It is here.", "And that is there."]) as (server, url):
        settings = OpenAILLMService.Settings(model="loopback")
        llm = OpenAILLMService(api_key="none", base_url=url, settings=settings)
        stt = SpeechToText("where is it", "and that")
        parts = [stt, user, llm, switcher, Speaker(realtime=True), tap, assistant]
        worker = PipelineWorker(
            Pipeline(parts),
            params=PipelineParams(audio_in_sample_rate=RATE_HZ, audio_out_sample_rate=RATE_HZ),
            idle_timeout_secs=None,
        )

        @switcher.strategy.event_handler("on_service_switched")
        async def on_service_switched(strategy, service):
            await worker.queue_frame(
                LLMServiceMetadataFrame(
                    service_name=service.name,
                    is_realtime_service=False,
                    user_turn_strategies=UserTurnStrategies(
                        stop=[SpeechTimeoutUserTurnStopStrategy()]
                    ),
                )
            )

        word = speech("barge_in", RATE_HZ)
        await run_fed(
            worker, tap, np.concatenate([silence(1), word, silence(5.5), word, silence(3)])
        )
    assert [(message["role"], message["content"]) for message in context.get_messages()] == [
        ("user", "where is it"),
        ("assistant", "It is here."),
        ("user", "and that"),
        ("assistant", "And that is there."),
    ]
    assert tts.asked == ["And that is there."]
    assert len(server.requests) == 2


DOWN = FrameDirection.DOWNSTREAM
