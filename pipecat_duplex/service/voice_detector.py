"""The default voice detector: Pipecat's Silero, by the time of the audio."""

import copy
import functools
import time
from collections import deque
from typing import Any

import numpy as np
from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADAnalyzer, VADParams, VADState

RESET_SECS = 2.0
QUIET_CONFIDENCE = 0.1

SILENT_PEAK = 3
"""Samples of 16-bit audio up to this hold no voice: -81 dBFS."""

REST_SECS = 1.0
"""After so much silence, more of it is not looked at. What is remembered of the loudness, 0.4 s of
audio and an average over some windows, is then that of silence."""

MOST_UNMEASURED = 40
"""Windows whose loudness is measured later, if at all: 1.3 s. Of those before, the average keeps
nothing: less than a hundredth of a percent."""


# It only observes, so it may be more sensitive than one that decides when an agent speaks, and it
# may wait out the pauses in a sentence: an answer ends the user's turn by itself.
PARAMS = VADParams(confidence=0.5, start_secs=0.2, stop_secs=0.4, min_volume=0.3)


@functools.cache
def _load_silero() -> dict[str, Any]:
    """Return what a Silero detector of Pipecat's consists of, loaded once."""
    return vars(SileroVADAnalyzer())


class VoiceDetector(SileroVADAnalyzer):
    """Silero, with its state reset by the time of the audio, and never inside a word.

    Pipecat 1.12 resets it every five seconds of the wall clock, also inside a word; in a run faster
    than real time the resets would fall elsewhere each time. Newer versions count audio themselves
    and are left alone.

    It does not work where its answer is known: in digital silence, and at the loudness of windows
    that sound like no voice. It is the costliest part of a bot.
    """

    def __init__(self, *, params: VADParams = PARAMS, **kwargs):
        """Initialize the detector.

        Args:
            params: When a voice counts.
            **kwargs: Arguments of the parent class.
        """
        # The parent class would load its model anew for each conversation, which takes 100 ms and
        # 28 MB. What conversations have of their own is a state that is handed to the model.
        VADAnalyzer.__init__(self, params=params, **kwargs)
        for name, value in _load_silero().items():
            if name not in vars(self):
                setattr(self, name, copy.copy(value))
        self._model.reset_states()
        self._counts_audio = hasattr(self, "_maybe_reset_model")
        self._secs_since_reset = 0.0
        self._silent_secs = 0.0
        self._confidence = 0.0
        self._unmeasured: deque[bytes] = deque(maxlen=MOST_UNMEASURED)

    async def analyze_audio(self, buffer: bytes) -> VADState:
        """Analyze audio, in a thread; more of a long silence is left out.

        Args:
            buffer: 16-bit mono audio at the detector's rate, any length.

        Returns:
            The state after it.
        """
        if self._is_more_silence(buffer):
            return self._vad_state
        return await super().analyze_audio(buffer)

    def _is_more_silence(self, buffer: bytes) -> bool:
        pcm16 = np.frombuffer(buffer, np.int16)
        if pcm16.size and max(int(pcm16.max()), -int(pcm16.min())) > SILENT_PEAK:
            self._silent_secs = 0.0
            return False
        if self._silent_secs < REST_SECS or self._vad_state is not VADState.QUIET:
            self._silent_secs += len(pcm16) / self.sample_rate
            return False
        self._model.reset_states()  # As in other pauses: a voice is heard with a fresh mind.
        # What makes no whole window yet stays: windows begin where they would.
        waiting = self._vad_buffer + buffer
        self._vad_buffer = waiting[len(waiting) - len(waiting) % self._vad_frames_num_bytes :]
        return True

    def voice_confidence(self, buffer: bytes) -> float:
        """Rate one window.

        Args:
            buffer: 16-bit mono audio at the detector's rate.

        Returns:
            The confidence that it holds a voice, 0 to 1.
        """
        if self._counts_audio:
            self._confidence = super().voice_confidence(buffer)
            return self._confidence
        self._last_reset_time = time.time()  # The parent class never finds a reset due.
        confidence = self._confidence = super().voice_confidence(buffer)
        self._secs_since_reset += self.num_frames_required() / self.sample_rate
        quiet = self._vad_state is VADState.QUIET and confidence < QUIET_CONFIDENCE
        if quiet and self._secs_since_reset >= RESET_SECS:
            self._model.reset_states()
            self._secs_since_reset = 0.0
        return confidence

    def _get_smoothed_volume(self, audio: bytes) -> float:
        """Return how loud it is, where that matters: in a window that sounds like a voice."""
        self._unmeasured.append(audio)
        if self._confidence >= self.params.confidence:
            while self._unmeasured:
                unmeasured = self._unmeasured.popleft()
                self._prev_volume = super()._get_smoothed_volume(unmeasured)
        return self._prev_volume
