"""Mutes the agent when it is about to say something from a list.

The text comes before the sound: the model thinks a word before it says it. So the gate can act on
a word that nobody has heard yet. Place it right behind the service, before everything that is to
see only what was allowed::

    Pipeline([
        transport.input(),
        user_aggregator,
        DuplexLLMService(checkpoint="embedded"),
        ModerationGate(["secret code"]),
        transport.output(),
        assistant_aggregator,
    ])
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pipecat.frames.frames import (
    AggregatedTextFrame,
    AggregatedTextProgressFrame,
    Frame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TTSAudioRawFrame,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

from pipecat_duplex import MonologueTextFrame
from pipecat_duplex.conversation.monologue import piece_bytes
from pipecat_duplex.conversation.phrases import has_spaces, words_of

_SPEECH = (
    MonologueTextFrame,
    LLMTextFrame,
    AggregatedTextFrame,
    AggregatedTextProgressFrame,
    TTSAudioRawFrame,
)


@dataclass(frozen=True, slots=True)
class Muted:
    """The agent was muted.

    Parameters:
        phrase: The listed phrase that it was about to say.
        step_index: The step from which on nothing is heard.
        time_secs: When that step's sound would have begun, in seconds of the user's audio.
    """

    phrase: str
    step_index: int
    time_secs: float


class ModerationGate(FrameProcessor):
    """Lets the agent's words and sound through until its monologue holds a listed phrase.

    From the step of the phrase's last piece to the end of the utterance, neither sound nor text
    passes: no caption shows the phrase, and the context does not hold it. The frames that open and
    close the utterance pass, and so do turn events. The model does not know: it talks on, unheard.

    Upper and lower case, punctuation and spaces make no difference. A phrase begins where a word
    begins, and anywhere in scripts that put no spaces between words. It may end inside a word
    ("code" mutes "codes"): the gate does not wait for the rest of a word whose sound has begun. The
    first words of a longer phrase have been heard by then.

    The service's own handlers, and the text in ``AgentYieldedFrame``, still tell all the words.

    Event handlers available:

    - on_muted: Called with a :class:`Muted`.

    Example::

        @gate.event_handler("on_muted")
        async def on_muted(gate, muted):
            print(f"muted at {muted.time_secs:.2f} s: {muted.phrase}")
    """

    def __init__(self, phrases: Sequence[str], **kwargs):
        """Initialize the gate.

        Args:
            phrases: What is not to be heard.
            **kwargs: Additional arguments passed to the parent FrameProcessor.

        Raises:
            ValueError: A phrase holds no word, or ``phrases`` is not a list of phrases.
        """
        super().__init__(**kwargs)
        if isinstance(phrases, str):
            raise ValueError("phrases is one string; put it into a list")
        self._phrases = {phrase: _plain(phrase) for phrase in phrases}
        for phrase, plain in self._phrases.items():
            if not plain.strip():
                raise ValueError(f"the phrase {phrase!r} holds no word")
        self._thought = bytearray()
        self._muted = False
        self._register_event_handler("on_muted")

    async def process_frame(self, frame: Frame, direction: FrameDirection):
        """Pass the frame on, unless it belongs to what is muted.

        Args:
            frame: The frame to process.
            direction: The direction of frame flow.
        """
        await super().process_frame(frame, direction)
        if direction == FrameDirection.DOWNSTREAM:
            if isinstance(frame, (LLMFullResponseStartFrame, LLMFullResponseEndFrame)):
                self._thought.clear()
                self._muted = False
            elif isinstance(frame, MonologueTextFrame) and not self._muted:
                await self._moderate(frame)
            if self._muted and isinstance(frame, _SPEECH):
                return
        await self.push_frame(frame, direction)

    async def _moderate(self, frame: MonologueTextFrame):
        self._thought += piece_bytes(frame.text)
        # A character whose bytes have not all come is left out.
        thought = _plain(self._thought.decode("utf-8", errors="ignore"))
        for phrase, plain in self._phrases.items():
            if plain in thought:
                self._muted = True
                muted = Muted(phrase, frame.step_index, frame.time_secs)
                await self._call_event_handler("on_muted", muted)
                return


def _plain(text: str) -> str:
    """Return the words alone, in one case; where spaces part words, one stands before each."""
    return "".join(f" {word}" if has_spaces(word) else word for word in words_of(text))
