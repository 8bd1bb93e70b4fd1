"""RTVI messages that only a full-duplex bot can send, for any client.

RTVI has messages of its own for who is speaking and what the bot says. The model's monologue, its
yields, the user's backchannels and the time the step loop keeps are ours; they travel as RTVI
server messages.
"""

import codecs

from pipecat.frames.frames import Frame, MetricsFrame
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.processors.frameworks.rtvi import RTVIServerMessageFrame

from pipecat_duplex.conversation.monologue import piece_bytes
from pipecat_duplex.service.frames import (
    AgentYieldedFrame,
    BackchannelFrame,
    DuplexMetricsData,
    MonologueTextFrame,
)


class DuplexRTVIFeed(FrameProcessor):
    """Tells RTVI clients what the full-duplex service says.

    Place it after the service. It passes every frame on::

        pipeline = Pipeline([
            transport.input(),
            user_aggregator,
            duplex,
            DuplexRTVIFeed(),
            transport.output(),
            assistant_aggregator,
        ])

    A client receives ``{"label": "rtvi-ai", "type": "server-message", "data": ...}`` with one of
    these as ``data``. All times are in seconds of the user's audio since the session began.

    ``duplex-monologue``, one for each piece of the monologue, before its sound:

    - ``text``: What to append to the caption: a piece that starts a word begins with a space. Empty
      while the bytes of a character are not complete.
    - ``token``: The piece's id.
    - ``step_index``: Its step, 80 ms each.
    - ``time_secs``: When its sound can be heard.
    - ``utterance_id``: The number that ``say`` gave to these words, or null.

    ``duplex-yield``, when the user spoke over the agent and the model fell silent. RTVI's own
    ``bot-interrupted`` and ``bot-llm-stopped`` for it come just before:

    - ``text``: What the agent had said of its utterance.
    - ``time_secs``: When it fell silent.
    - ``delay_secs``: From the user's first sound over the agent to the agent's silence.

    ``duplex-backchannel``, when the user spoke over the agent and the agent went on:

    - ``time_secs``: When the user began.
    - ``duration_secs``: How long they spoke.

    ``duplex-metrics``, about once a second if the pipeline has ``enable_metrics=True``: the fields
    of :class:`~pipecat_duplex.service.frames.DuplexMetricsData`.

    RTVI's own messages tell the rest: ``bot-llm-started`` and ``bot-llm-stopped`` enclose an
    utterance of the monologue, ``bot-started-speaking`` and ``bot-stopped-speaking`` its sound. The
    user's voice over the agent is no user turn, so ask for the raw signal with
    ``RTVIObserverParams(vad_user_speaking_enabled=True)``.
    """

    def __init__(self, **kwargs):
        """Initialize the feed.

        Args:
            **kwargs: Additional arguments passed to the parent FrameProcessor.
        """
        super().__init__(**kwargs)
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        """Pass a frame on, and tell clients about it.

        Args:
            frame: The frame to process.
            direction: The direction of frame flow.
        """
        await super().process_frame(frame, direction)
        if direction == FrameDirection.DOWNSTREAM:
            for message in self._messages(frame):
                await self.push_frame(RTVIServerMessageFrame(data=message))
        await self.push_frame(frame, direction)

    def _messages(self, frame: Frame) -> list[dict]:
        if isinstance(frame, MonologueTextFrame):
            return [self._monologue(frame)]
        if isinstance(frame, AgentYieldedFrame):
            return [
                {
                    "type": "duplex-yield",
                    "text": frame.text,
                    "time_secs": frame.time_secs,
                    "delay_secs": frame.delay_secs,
                }
            ]
        if isinstance(frame, BackchannelFrame):
            return [
                {
                    "type": "duplex-backchannel",
                    "time_secs": frame.time_secs,
                    "duration_secs": frame.duration_secs,
                }
            ]
        if isinstance(frame, MetricsFrame):
            return [
                {"type": "duplex-metrics", **data.model_dump()}
                for data in frame.data
                if isinstance(data, DuplexMetricsData)
            ]
        return []

    def _monologue(self, frame: MonologueTextFrame) -> dict:
        return {
            "type": "duplex-monologue",
            "text": self.decode(frame.text),
            "token": frame.token,
            "step_index": frame.step_index,
            "time_secs": frame.time_secs,
            "utterance_id": frame.utterance_id,
        }

    def decode(self, piece: str) -> str:
        """Return what a piece adds to the text.

        Args:
            piece: The monologue's next piece.
        """
        return self._utf8.decode(piece_bytes(piece))
