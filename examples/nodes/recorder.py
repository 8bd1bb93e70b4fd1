"""Both sides of the call as one stereo WAV file: the user left, the agent right.

Place it right behind the service: there the user's audio passes, and the agent's still carries its
place on the user's time line (output transports cut it up and forget the place)::

    duplex = DuplexLLMService(checkpoint="embedded")
    Pipeline([
        transport.input(),
        user_aggregator,
        duplex,
        StereoRecorder(duplex, "call.wav"),
        transport.output(),
        assistant_aggregator,
    ])
"""

import asyncio
import math
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from pipecat.frames.frames import (
    CancelFrame,
    ClientConnectedFrame,
    EndFrame,
    Frame,
    InputAudioRawFrame,
    InterruptionFrame,
    StartFrame,
    TTSAudioRawFrame,
)
from pipecat.processors.frame_processor import (
    FrameDirection,
    FrameProcessor,
    FrameProcessorSetup,
)

from pipecat_duplex import DuplexLLMService, InvalidAudio
from pipecat_duplex.conversation.clock import ClockSettings, InputClock
from pipecat_duplex.conversation.line_floor import LineFloor
from pipecat_duplex.conversation.pcm import float_to_pcm16, level_db, pcm16_to_float
from pipecat_duplex.conversation.resampler import Resampler
from pipecat_duplex.session import STEP_SECS

USER, AGENT = 0, 1
"""The channels: left and right."""


class StereoRecorder(FrameProcessor):
    """Records the conversation as the model lived it, at the pipeline's output rate.

    The user stands where their samples fell on the model's time line, the agent at the ``pts`` of
    its audio, so the two line up to the sample: how long the agent took to answer or to yield can
    be read off the file. What the way to the ear adds (network, a stall) is not in it.

    What nobody heard is silence:

    - Where the agent says nothing, and where the service dropped a step as too old.
    - Where the user's packets did not come and the service fed silence. The recorder decides it by
      the service's own rules (``InputClock``, ``LineFloor``) when the next packet comes. Where that
      falls within a millisecond of the limit, the two may judge otherwise, and what follows is then
      80 ms off.
    - After an interruption, agent audio that was pushed ahead of the user's time line, up to 80 ms.
      What had queued up in the output transport behind a stall is recorded, though not played.

    User audio that the service left out to make up time is left out here, too.

    A session that takes the place of a failed one goes on where the recording stands. Agent audio
    without ``pts``, such as another TTS service's, is not recorded.
    """

    def __init__(
        self,
        service: DuplexLLMService,
        path: str | Path,
        *,
        clock: ClockSettings | None = None,
        now_secs: Callable[[], float] = time.monotonic,
        **kwargs,
    ):
        """Initialize the recorder.

        Args:
            service: The service whose conversation is recorded.
            path: The WAV file.
            clock: As given to the service.
            now_secs: As given to the service.
            **kwargs: Additional arguments passed to the parent FrameProcessor.
        """
        super().__init__(**kwargs)
        self._path = Path(path)
        # A hole is filled here when it is over, in one go, however long it was.
        self._clock_settings = replace(clock or ClockSettings(), max_fill_secs=math.inf)
        self._clock = InputClock(self._clock_settings)
        self._floor = LineFloor()
        self._now_secs = now_secs
        self._sessions = 0
        self._session_start = 0  # The sample at which the session's time line begins.
        self._rate_hz = 0
        self._step_samples = 0
        self._user_samples = 0
        self._pending = np.zeros(0, np.float32)
        self._resampler: Resampler | None = None
        self._blocks: asyncio.Queue[tuple[int, int, bytes | None] | None] = asyncio.Queue()
        self._writer: asyncio.Task | None = None
        self._closed = False
        service.add_event_handler("on_session_started", self._on_session_started)

    async def setup(self, setup: FrameProcessorSetup):
        """Take the pipeline's output rate.

        Args:
            setup: Configuration object containing setup parameters.
        """
        await super().setup(setup)
        self._rate_hz = setup.audio_out_sample_rate
        self._step_samples = round(STEP_SECS * self._rate_hz)

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        """Record what can be heard in the frame, and pass it on.

        Args:
            frame: The frame to process.
            direction: The direction of frame flow.
        """
        await super().process_frame(frame, direction)
        if isinstance(frame, StartFrame):
            self._writer = self.create_task(self._write())
        elif isinstance(frame, (EndFrame, CancelFrame)):
            await self._close()
        elif direction == FrameDirection.DOWNSTREAM:
            self._take(frame)
        await self.push_frame(frame, direction)

    async def cleanup(self):
        """Close the file, if no frame has told to."""
        await self._close()
        await super().cleanup()

    def _take(self, frame: Frame):
        if isinstance(frame, InputAudioRawFrame):
            self._take_user(frame)
        elif isinstance(frame, TTSAudioRawFrame):
            self._take_agent(frame)
        elif isinstance(frame, ClientConnectedFrame):
            self._clock.start(self._now_secs())
        elif isinstance(frame, InterruptionFrame):
            self._put(AGENT, self._user_samples + len(self._pending), None)

    async def _on_session_started(self, _service: DuplexLLMService, _session_id: str):
        self._sessions += 1
        if self._sessions > 1:
            if len(self._pending):
                self._end_step()
            self._session_start = self._user_samples
            self._clock = InputClock(self._clock_settings)
            self._floor = LineFloor()
            self._clock.start(self._now_secs())

    def _take_user(self, frame: InputAudioRawFrame):
        try:
            pcm = self._resampled(
                pcm16_to_float(frame.audio, frame.num_channels), frame.sample_rate
            )
        except InvalidAudio:
            return  # The service says so, and does not hear it either.
        self._fill_silence()
        self._pending = np.concatenate([self._pending, pcm])
        while len(self._pending) >= self._step_samples:
            step = self._pending[: self._step_samples]
            self._pending = self._pending[self._step_samples :]
            if self._clock.admit(self._now_secs(), quiet=self._floor.is_quiet(level_db(step))):
                self._put_user(step)

    def _resampled(self, pcm: np.ndarray, rate_hz: int) -> np.ndarray:
        if self._resampler is None or self._resampler.in_rate_hz != rate_hz:
            self._resampler = Resampler(rate_hz, self._rate_hz)
        return self._resampler.push(pcm)

    def _fill_silence(self):
        """Leave out the steps for which no audio came; a step that came in part keeps its part."""
        while self._clock.fill(self._now_secs()):
            self._end_step()

    def _end_step(self):
        """Take the incomplete step as it is, filled up with silence."""
        pending, self._pending = self._pending, np.zeros(0, np.float32)
        self._put_user(pending)

    def _put_user(self, step: np.ndarray):
        delay_samples = self._resampler.delay_samples if self._resampler else 0
        self._put(USER, self._user_samples - delay_samples, float_to_pcm16(step))
        self._user_samples += self._step_samples

    def _take_agent(self, frame: TTSAudioRawFrame):
        if frame.pts is not None and (frame.sample_rate, frame.num_channels) == (self._rate_hz, 1):
            start = self._session_start + round(frame.pts * self._rate_hz / 1e9)
            self._put(AGENT, start, frame.audio)

    def _put(self, channel: int, start: int, pcm16: bytes | None):
        if not self._closed:
            self._blocks.put_nowait((channel, start, pcm16))

    async def _close(self):
        if self._writer is None:
            return
        if not self._closed:
            self._end_step()
            self._closed = True
            self._blocks.put_nowait(None)
        # Unlike an await, this leaves the writer alone when the waiting itself is cancelled.
        await asyncio.wait([self._writer])

    async def _write(self):
        """Write blocks as they come, each batch in a thread."""
        try:
            wav = await asyncio.to_thread(StereoWav, self._path, self._rate_hz)
            try:
                while (block := await self._blocks.get()) is not None:
                    await asyncio.to_thread(wav.put, *block)
            finally:
                wav.close()
        except (OSError, struct.error) as e:
            self._closed = True
            await self.push_error(f"The recording cannot be written: {e}", exception=e)


class StereoWav:
    """A stereo WAV file of 16 bits that is written at any place, a channel at a time.

    What is not written is silence. The header is right after each block, so that even a process
    that dies leaves a file that plays.
    """

    _HEADER = struct.Struct("<4sI4s4sIHHIIHH4sI")
    _BYTES = 4  # Of both channels' samples together.

    def __init__(self, path: Path, rate_hz: int):
        """Open the file, or raise OSError.

        Args:
            path: The file. What it held is overwritten.
            rate_hz: The sample rate.
        """
        self._rate_hz = rate_hz
        self._samples = 0
        self._file = open(path, "w+b")
        self._write_header()

    def put(self, channel: int, start: int, pcm16: bytes | None) -> None:
        """Write one channel, and leave the other as it is.

        Args:
            channel: :data:`USER` or :data:`AGENT`.
            start: The first sample. What lies before the file is cut off.
            pcm16: 16-bit mono audio, or ``None`` to silence the channel from there to the end.
        """
        if pcm16 is None:
            pcm16 = bytes(2 * max(0, self._samples - start))
        samples = np.frombuffer(pcm16, "<i2")[max(0, -start) :]
        start = max(0, start)
        if not len(samples):
            return
        both = self._read(start, len(samples))
        both[:, channel] = samples
        self._file.seek(self._HEADER.size + start * self._BYTES)
        self._file.write(both.tobytes())
        self._samples = max(self._samples, start + len(samples))
        self._write_header()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read(self, start: int, count: int) -> np.ndarray:
        self._file.seek(self._HEADER.size + start * self._BYTES)
        data = self._file.read(count * self._BYTES)
        return np.frombuffer(data.ljust(count * self._BYTES, b"\0"), "<i2").reshape(-1, 2).copy()

    def _write_header(self) -> None:
        size = self._samples * self._BYTES
        riff = (b"RIFF", self._HEADER.size - 8 + size, b"WAVE")
        pcm, channels, bits = 1, 2, 16
        form = (pcm, channels, self._rate_hz, self._rate_hz * self._BYTES, self._BYTES, bits)
        self._file.seek(0)
        self._file.write(self._HEADER.pack(*riff, b"fmt ", 16, *form, b"data", size))
        self._file.flush()
