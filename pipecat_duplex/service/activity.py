"""The user's voice, as one of Pipecat's voice activity detectors sees it.

The detector only observes: the model always hears all the audio.
"""

import numpy as np
from loguru import logger
from pipecat.audio.vad.vad_analyzer import VADAnalyzer, VADState

from pipecat_duplex.conversation.pcm import float_to_pcm16
from pipecat_duplex.conversation.resampler import Resampler
from pipecat_duplex.conversation.turns import UserVoice
from pipecat_duplex.session import SAMPLE_RATE_HZ

DETECTOR_RATE_HZ = 16_000

_VOICES = {
    VADState.QUIET: UserVoice.QUIET,
    VADState.STARTING: UserVoice.STARTING,
    VADState.SPEAKING: UserVoice.SPEAKING,
    VADState.STOPPING: UserVoice.STOPPING,
}


class UserActivity:
    """Runs a Pipecat VAD analyzer over the model's own steps of user audio."""

    def __init__(self, analyzer: VADAnalyzer):
        """Initialize the observer.

        Args:
            analyzer: The detector. It is driven at 16 kHz.
        """
        self._analyzer = analyzer
        self._analyzer.set_sample_rate(DETECTOR_RATE_HZ)
        self._resampler = Resampler(SAMPLE_RATE_HZ, self._analyzer.sample_rate)
        self._failed = False

    async def observe(self, pcm: np.ndarray) -> UserVoice:
        """Observe one step of the user's audio. The detector runs in its own thread.

        Args:
            pcm: Float32, 24 kHz, any length.

        Returns:
            The user's voice after it. A detector that raises is left alone from then on, and the
            user counts as quiet: the conversation goes on without turn events of the user's.
        """
        if self._failed:
            return UserVoice.QUIET
        try:
            audio = float_to_pcm16(self._resampler.push(pcm))
            return _VOICES[await self._analyzer.analyze_audio(audio)]
        except Exception as e:
            self._failed = True
            logger.error(f"{self._analyzer}: voice detection failed, user turns stop: {e}")
            return UserVoice.QUIET

    async def cleanup(self) -> None:
        """Release the detector's thread."""
        await self._analyzer.cleanup()
