"""Media Streams messages to and from Pipecat's frames, at the line's own rate."""

import time
from collections.abc import Callable

from loguru import logger
from pipecat.audio.dtmf.types import KeypadEntry
from pipecat.audio.utils import ulaw_to_pcm
from pipecat.frames.frames import (
    AudioRawFrame,
    Frame,
    InputAudioRawFrame,
    InputDTMFFrame,
    InterruptionFrame,
)
from pipecat.processors.frame_processor import FrameProcessorSetup
from pipecat.serializers.twilio import TwilioFrameSerializer

from pipecat_duplex.telephony.line import LINE_RATE_HZ, InboundLine, LineReport, OutboundLine
from pipecat_duplex.telephony.media_stream import MediaStream, StreamRefused


class MediaStreamSerializer(TwilioFrameSerializer):
    """Pipecat's serializer for Twilio, for calls in which every millisecond counts.

    Give it to Pipecat's own ``FastAPIWebsocketTransport``, in a pipeline that runs at 8 kHz in and
    out: then nothing resamples between the line and the service.

    - The caller's chunks are put into the order of their timestamps, and silence where one is lost.
    - A message outside the protocol ends the call, with a close code, a reason and a log line.
    - When the line is uneven, each of the agent's utterances begins with as much silence as keeps
      it from being torn. An even line has none.
    """

    def __init__(
        self,
        stream: MediaStream,
        *,
        auth_token: str | None = None,
        base_url: str | None = None,
        now_secs: Callable[[], float] = time.monotonic,
    ):
        """Initialize the serializer.

        Args:
            stream: The call.
            auth_token: The account's auth token. With it, the pipeline's end hangs up; without it,
                the call goes on with what follows ``<Connect>`` in the TwiML.
            base_url: Where Twilio's REST API is, if not where it always is.
            now_secs: The time, for tests.
        """
        can_hang_up = bool(auth_token and stream.call_sid and stream.account_sid)
        super().__init__(
            stream.stream_sid,
            call_sid=stream.call_sid,
            account_sid=stream.account_sid,
            auth_token=auth_token,
            base_url=base_url,
            params=TwilioFrameSerializer.InputParams(auto_hang_up=can_hang_up),
        )
        self._stream = stream
        self._now_secs = now_secs
        self._inbound = InboundLine()
        self._outbound = OutboundLine()

    def report(self) -> LineReport:
        """Return how the line has been."""
        return LineReport(
            lost_secs=self._inbound.lost_secs,
            late_secs=self._inbound.late_secs,
            lateness_p98_ms=1000 * self._inbound.lateness_secs(),
            gaps=self._outbound.gaps,
            gap_secs=self._outbound.gap_secs,
            reserve_ms=1000 * self._outbound.reserve_secs,
        )

    async def setup(self, setup: FrameProcessorSetup):
        """Take the pipeline's rates.

        Args:
            setup: Configuration object containing setup parameters.
        """
        await super().setup(setup)
        rates_hz = {setup.audio_in_sample_rate, setup.audio_out_sample_rate}
        if rates_hz != {LINE_RATE_HZ}:
            logger.warning(
                f"The pipeline does not run at the line's {LINE_RATE_HZ} Hz: Pipecat's resampler "
                "adds tens of milliseconds each way. Set audio_in_sample_rate and "
                f"audio_out_sample_rate to {LINE_RATE_HZ}."
            )

    async def serialize(self, frame: Frame) -> str | bytes | None:
        """Turn a frame into a message.

        Args:
            frame: The frame.

        Returns:
            The message, or ``None`` if there is nothing to send.
        """
        if isinstance(frame, InterruptionFrame):
            self._outbound.clear()
        elif isinstance(frame, AudioRawFrame):
            frame.audio = self._reserve(frame) + frame.audio
        return await super().serialize(frame)

    async def deserialize(self, data: str | bytes) -> Frame | None:
        """Turn a message into a frame.

        Args:
            data: The message.

        Returns:
            The frame, or ``None`` if there is nothing to pass on.
        """
        try:
            message = self._stream.parse(data)
        except StreamRefused as e:
            await self._stream.refuse(e)
            return None
        if message is None:
            return None
        if message["event"] == "media":
            return await self._take_audio(message["media"])
        if message["event"] == "stop":
            await self._stream.close()
            return None
        if message["event"] == "dtmf":
            return _pressed(message["dtmf"]["digit"])
        return None

    async def _take_audio(self, media: dict) -> InputAudioRawFrame | None:
        if media.get("track", "inbound") != "inbound":
            return None
        ulaw = self._inbound.push(media["timestamp"], media["payload"], self._now_secs())
        if not ulaw:
            return None
        pcm16 = await ulaw_to_pcm(ulaw, LINE_RATE_HZ, self._sample_rate, self._input_resampler)
        return InputAudioRawFrame(pcm16, self._sample_rate, 1) if pcm16 else None

    def _reserve(self, frame: AudioRawFrame) -> bytes:
        """Return the silence to send ahead of the agent's audio."""
        reserve_secs = self._outbound.send(
            self._now_secs(),
            frame.num_frames / frame.sample_rate,
            lateness_secs=self._inbound.lateness_secs(),
        )
        return bytes(2 * frame.num_channels * round(reserve_secs * frame.sample_rate))


def _pressed(digit: str) -> InputDTMFFrame | None:
    """Return the frame of a key; A to D, which telephones lack, have none in Pipecat."""
    try:
        return InputDTMFFrame(KeypadEntry(digit))
    except ValueError:
        return None
