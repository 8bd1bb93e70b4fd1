"""A TTS as the sessions of an engine use it."""

from pathlib import Path

from pipecat_duplex.conversation.mime import MIMED
from pipecat_duplex.engine.vocabulary import Vocabulary, VoicedVocabulary
from pipecat_duplex.engine.voice.hibari import load_hibari
from pipecat_duplex.engine.voice.speaker import VoicedSpeaker
from pipecat_duplex.engine.voice.tts import TTS, TTSThread

AUTO, HIBARI, OWN = "auto", "hibari", "own"


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


def load_tts(name: str, checkpoint: str | Path) -> TTS | None:
    """Load who speaks given words. Blocks.

    Args:
        name: ``hibari``; ``own`` for the model itself; or ``auto``, which is ``hibari`` for the
            embedded checkpoint, whose own words are few and whose own voice is hibari's, and the
            model itself for all others.
        checkpoint: The model beside which it speaks.

    Returns:
        None if the model itself speaks.

    Raises:
        ValueError: There is none of this name.
    """
    if name == AUTO:
        name = HIBARI if str(checkpoint) == "embedded" else OWN
    if name not in (HIBARI, OWN):
        raise ValueError(
            f"tts={name!r}: there is {HIBARI!r}, {OWN!r} (the model itself), {AUTO!r}, or an "
            "object with TTS's methods"
        )
    return load_hibari() if name == HIBARI else None
