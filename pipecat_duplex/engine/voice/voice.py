"""A TTS as the sessions of an engine use it."""

from pipecat_duplex.conversation.mime import MIMED
from pipecat_duplex.engine.vocabulary import Vocabulary, VoicedVocabulary
from pipecat_duplex.engine.voice.hibari import load_hibari
from pipecat_duplex.engine.voice.speaker import VoicedSpeaker
from pipecat_duplex.engine.voice.tts import TTS, TTSThread

HIBARI = "hibari"


class Voice:
    """The voice of all sessions of an engine."""

    def __init__(self, tts: TTS, vocabulary: Vocabulary):
        """Initialize.

        Args:
            tts: Who speaks.
            vocabulary: The model's words, for the story that it tells meanwhile.

        Raises:
            CannotSay: It has not the words of the story.
        """
        self._story = vocabulary.spell(MIMED)
        self._thread = TTSThread(tts)
        self.vocabulary = VoicedVocabulary(tts.lacks)

    def speaker(self, session_id: str) -> VoicedSpeaker:
        """Return who says the words of a session."""
        return VoicedSpeaker(self._thread, self._story, session_id)

    def close(self) -> None:
        """Speak nothing more."""
        self._thread.close()


def load_tts(name: str) -> TTS:
    """Load a TTS by its name. Blocks.

    Args:
        name: ``hibari``.

    Raises:
        ValueError: There is none of this name.
        MissingExtra: It is not installed.
    """
    if name != HIBARI:
        raise ValueError(f"tts={name!r}: there is {HIBARI!r}, or an object with TTS's methods")
    return load_hibari()
