"""The default voice detector: Pipecat's Silero, by the time of the audio."""

import copy
import functools
import time
from typing import Any

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.audio.vad.vad_analyzer import VADAnalyzer, VADParams, VADState

RESET_SECS = 2.0
QUIET_CONFIDENCE = 0.1


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

    def voice_confidence(self, buffer: bytes) -> float:
        """Rate one window.

        Args:
            buffer: 16-bit mono audio at the detector's rate.

        Returns:
            The confidence that it holds a voice, 0 to 1.
        """
        if self._counts_audio:
            return super().voice_confidence(buffer)
        self._last_reset_time = time.time()  # The parent class never finds a reset due.
        confidence = super().voice_confidence(buffer)
        self._secs_since_reset += self.num_frames_required() / self.sample_rate
        quiet = self._vad_state is VADState.QUIET and confidence < QUIET_CONFIDENCE
        if quiet and self._secs_since_reset >= RESET_SECS:
            self._model.reset_states()
            self._secs_since_reset = 0.0
        return confidence
