"""Given words in a voice that is not the model's."""

from pipecat_duplex.engine.voice.tts import TTS, Sound
from pipecat_duplex.engine.voice.voice import AUTO, HIBARI, OWN, Voice, load_tts

__all__ = ["AUTO", "HIBARI", "OWN", "TTS", "Sound", "Voice", "load_tts"]
