"""A TTS on Pipecat's base class, and a loudspeaker that plays by the conversation's steps."""

import asyncio
import math
from collections.abc import AsyncGenerator

import numpy as np
from pipecat.frames.frames import Frame, OutputAudioRawFrame, TTSAudioRawFrame
from pipecat.services.settings import TTSSettings
from pipecat.services.tts_service import TTSService

from pipecat_duplex.conversation.pcm import float_to_pcm16
from pipecat_duplex.session import STEP_SECS
from tests.pipeline import Speaker

WORD_SECS = 0.24


class ToneTTS(TTSService):
    """Hums each word for as long as the next."""

    def __init__(self):
        super().__init__(
            push_start_frame=True,
            push_stop_frames=True,
            settings=TTSSettings(model=None, voice="tone", language=None),
        )
        self.asked: list[str] = []

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame, None]:
        self.asked.append(text)
        for _ in text.split():
            secs = np.arange(round(WORD_SECS * self.sample_rate)) / self.sample_rate
            pcm = (0.2 * np.sin(2 * np.pi * 200 * secs)).astype(np.float32)
            yield TTSAudioRawFrame(float_to_pcm16(pcm), self.sample_rate, 1, context_id=context_id)


class StepSpeaker(Speaker):
    """Plays at the speed of a conversation that is held in lock step."""

    def __init__(self, clock):
        super().__init__(realtime=False)
        self._clock = clock
        self._until_secs = 0.0

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        now_secs = self._clock.service.step_count * STEP_SECS
        self.played.append((now_secs, frame.audio))
        self._until_secs = max(now_secs, self._until_secs) + frame.num_frames / frame.sample_rate
        until = math.floor(self._until_secs / STEP_SECS)
        service = self._clock.service
        while service.session is not None and service.step_count < until:  # noqa: ASYNC110
            await asyncio.sleep(0)
        return True
