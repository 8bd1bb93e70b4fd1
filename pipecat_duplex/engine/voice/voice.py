"""A TTS as the sessions of an engine use it."""

from pipecat_duplex.conversation.mime import MIMED
from pipecat_duplex.engine.vocabulary import Vocabulary, VoicedVocabulary
from pipecat_duplex.engine.voice.speaker import VoicedSpeaker
from pipecat_duplex.engine.voice.tts import TTS, TTSThread


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
