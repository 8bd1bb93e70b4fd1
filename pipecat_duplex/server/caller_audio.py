"""The user's audio on its way from a caller's messages to the session."""

from collections import deque

import numpy as np

from pipecat_duplex import protocol
from pipecat_duplex.conversation.cutter import StepCutter
from pipecat_duplex.protocol.opus import OpusDecoder
from pipecat_duplex.server.limit import AudioDebt, RateLimit
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SECS, DuplexError


class TooFast(DuplexError):
    """Audio comes faster than it may."""


class CallerAudio:
    """Decodes what a caller sends, cuts it into steps, and knows how it keeps to the clock.

    The time is an argument.
    """

    def __init__(self, audio_format: protocol.AudioFormat, ahead_secs: float, now_secs: float):
        """Initialize before the first audio.

        Args:
            audio_format: How audio travels.
            ahead_secs: How far it may run ahead of the clock.
            now_secs: The time.
        """
        # Of this call only: no state of a codec outlives it.
        self._decoder = OpusDecoder() if audio_format == "opus" else None
        self._cutter = StepCutter()
        self._ahead_secs = ahead_secs
        self._ahead = RateLimit(SAMPLE_RATE_HZ, ahead_secs * SAMPLE_RATE_HZ)
        self._unanswered_secs: deque[float] = deque()
        self.debt = AudioDebt(now_secs)

    def take(self, message: protocol.Audio | protocol.Pcm, now_secs: float) -> list[np.ndarray]:
        """Return the steps that a message completes.

        Raises:
            WireError: It is in the format that was not agreed on.
            InvalidAudio: It is no Ogg-Opus.
            TooFast: It runs too far ahead of the clock.
        """
        if isinstance(message, protocol.Pcm):
            if self._decoder is not None:
                raise protocol.WireError("raw audio, which was not agreed on: ask for format=pcm")
            self._count(len(message.pcm), now_secs)
            return [message.pcm]
        if self._decoder is None:
            raise protocol.WireError("audio in Opus, where raw audio was agreed on")
        # Minutes of Opus silence fit into a small message: what is too much is not decoded.
        room = max(0, int(self._ahead.room(now_secs))) + SAMPLE_RATE_HZ
        pcm = self._decoder.decode(message.data, max_samples=room)
        self._count(len(pcm), now_secs)
        return self._cutter.push(pcm)

    def note_sent(self, now_secs: float) -> None:
        """Take note that the session was given a step."""
        self._unanswered_secs.append(now_secs)

    def note_answered(self) -> None:
        """Take note that the session has answered a step."""
        if self._unanswered_secs:
            self._unanswered_secs.popleft()

    def waiting_secs(self, now_secs: float) -> float:
        """Return for how long the oldest step without an answer has waited; 0 without one."""
        return max(0.0, now_secs - self._unanswered_secs[0]) if self._unanswered_secs else 0.0

    def _count(self, samples: int, now_secs: float) -> None:
        self.debt.pay(samples / SAMPLE_RATE_HZ, now_secs)
        if not self._ahead.take(samples, now_secs):
            raise TooFast(f"audio runs more than {self._ahead_secs:g} s ahead of the clock")


def lag_beyond_step(secs: float) -> float:
    """Return the part of a delay that is beyond a step's length."""
    return max(0.0, secs - STEP_SECS)
