"""A Pipecat transport with a file as its microphone."""

import asyncio
from collections.abc import Callable

import numpy as np
from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InputAudioRawFrame,
    OutputAudioRawFrame,
    StartFrame,
)
from pipecat.processors.frame_processor import FrameDirection
from pipecat.transports.base_input import BaseInputTransport
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams

from pipecat_duplex.commands.converse.pacing import Pacer
from pipecat_duplex.conversation.pcm import float_to_pcm16
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES


class FileInputTransport(BaseInputTransport):
    """Plays audio into a pipeline, one step at a time, when its pacer says so."""

    def __init__(self, pcm: np.ndarray, pacer: Pacer, on_step: Callable[[int], None]):
        """Initialize the transport.

        Args:
            pcm: Float32 mono, 24 kHz; the last step is filled up with silence.
            pacer: When each step goes in.
            on_step: Called with the number of steps fed so far.
        """
        super().__init__(
            TransportParams(audio_in_enabled=True, audio_in_sample_rate=SAMPLE_RATE_HZ)
        )
        self._pcm = pcm
        self._pacer = pacer
        self._on_step = on_step

    async def start(self, frame: StartFrame):
        """Get ready; :meth:`feed` begins.

        Args:
            frame: The start frame.
        """
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def feed(self) -> None:
        """Play the audio from its first sample to its last, and wait for the answer to it."""
        starts = range(0, len(self._pcm), STEP_SAMPLES)
        for index, start in enumerate(starts):
            if not await self._pacer.wait_turn(index):
                return
            step = np.zeros(STEP_SAMPLES, np.float32)
            chunk = self._pcm[start : start + STEP_SAMPLES]
            step[: len(chunk)] = chunk
            await self.push_audio_frame(
                InputAudioRawFrame(float_to_pcm16(step), SAMPLE_RATE_HZ, num_channels=1)
            )
            self._on_step(index + 1)
        await self._pacer.wait_end(len(starts))


class FileOutputTransport(BaseOutputTransport):
    """Shows every frame that reaches it to a recorder, and plays to nobody."""

    def __init__(self, on_frame: Callable[[Frame], None], *, realtime: bool):
        """Initialize the transport.

        Args:
            on_frame: Called with each frame that comes from upstream. Audio is seen whole here,
                with its time stamp: the parent class cuts it into chunks that have none.
            realtime: Whether playing audio takes as long as the audio lasts.
        """
        super().__init__(
            TransportParams(
                audio_out_enabled=True,
                audio_out_sample_rate=SAMPLE_RATE_HZ,
                audio_out_end_silence_secs=0,
            )
        )
        self._on_frame = on_frame
        self._realtime = realtime
        self._played_until_secs = 0.0

    async def start(self, frame: StartFrame):
        """Get ready to play.

        Args:
            frame: The start frame.
        """
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        """Show the frame to the recorder, and play it.

        Args:
            frame: The frame to process.
            direction: The direction of frame flow.
        """
        if direction is FrameDirection.DOWNSTREAM and not isinstance(frame, EndFrame):
            self._on_frame(frame)
        await super().process_frame(frame, direction)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        """Take as long as a loudspeaker would, or no time.

        Args:
            frame: The audio.

        Returns:
            True: the audio was played.
        """
        if self._realtime:
            now_secs = asyncio.get_running_loop().time()
            self._played_until_secs = max(now_secs, self._played_until_secs) + (
                frame.num_frames / frame.sample_rate
            )
            await asyncio.sleep(self._played_until_secs - now_secs)
        return True
