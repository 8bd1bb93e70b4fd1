"""From single words with their times to what was said in each stretch of the user's voice."""

from collections.abc import Iterable
from typing import NamedTuple

from pipecat_duplex.conversation.user_words import Stretch, UserWords
from pipecat_duplex.session import STEP_SECS, HeardWord

SETTLE_SECS = 0.24
"""A stretch's last word is known so long after the recogniser's delay: it ends with the next."""

ALONE_SECS = 1.0
"""Words without a voice that the detector heard belong together until so long nothing comes."""

PAUSE_SECS = 0.16
"""While words come closer together than this, there are more."""


class HeardText(NamedTuple):
    """What was said in one stretch of voice.

    Parameters:
        text: The words.
        start_secs: When the first one begins, in seconds of the user's audio.
        end_secs: When the last one ends.
    """

    text: str
    start_secs: float
    end_secs: float


class _Known(NamedTuple):
    word: HeardWord
    at_secs: float

    @property
    def middle_secs(self) -> float:
        return (self.word.start_step + self.word.end_step) / 2 * STEP_SECS


class HeardSpeech:
    """Collects words until all of a stretch of voice are known."""

    def __init__(self, delay_secs: float):
        """Initialize before the first word.

        Args:
            delay_secs: How far the words are behind the voice.
        """
        self._delay_secs = delay_secs
        self._words: list[_Known] = []

    def step(self, words: Iterable[HeardWord], voice: UserWords) -> list[HeardText]:
        """Take the words of a step; return what is complete by now.

        Args:
            words: The words, in steps of the user's audio.
            voice: What is known of the user's voice, up to this step.
        """
        self._words += [_Known(word, voice.now_secs) for word in words]
        complete: list[HeardText] = []
        while self._words:
            stretch = voice.stretch_at(self._words[0].middle_secs)
            count = 0
            for each in self._words:
                if voice.stretch_at(each.middle_secs) is not stretch:
                    break
                count += 1
            goes_on = count == len(self._words) and not self._is_over(stretch, voice.now_secs)
            if goes_on:
                break
            complete.append(_text(self._words[:count]))
            del self._words[:count]
        return complete

    def _is_over(self, stretch: Stretch | None, now_secs: float) -> bool:
        silent_secs = now_secs - self._words[-1].at_secs
        if stretch is None:
            return silent_secs >= ALONE_SECS
        if stretch.end_secs is None:
            return False
        settled = now_secs - stretch.end_secs >= self._delay_secs + SETTLE_SECS
        return settled and silent_secs >= PAUSE_SECS


def _text(known: list[_Known]) -> HeardText:
    first, last = known[0].word, known[-1].word
    text = " ".join(each.word.text for each in known)
    return HeardText(text, first.start_step * STEP_SECS, last.end_step * STEP_SECS)
