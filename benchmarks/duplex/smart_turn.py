"""Pipecat's smart-turn beside the agent: the same sound, and only the decision.

A turn detector is asked when a voice detector has heard some silence. Here it is asked at that time
after the end of each sentence, and after the beginning of each pause, of the very sound that the
agent heard. It is never asked inside a sentence, and says nothing about yields or backchannels.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from benchmarks.duplex.dialogue import Dialogue
from pipecat_duplex.session import SAMPLE_RATE_HZ

SILENCE_SECS = 0.2
"""How long a voice detector waits before it asks, as Pipecat's does."""

_LEAD_SECS = 0.5


@dataclass
class Decisions:
    """Whether it took sentences to be complete.

    Attributes:
        complete_after: After each whole sentence: ``True`` is right.
        complete_in_pause: In each pause: ``True`` is wrong.
    """

    complete_after: list[bool] = field(default_factory=list)
    complete_in_pause: list[bool] = field(default_factory=list)


class SmartTurn:
    """Smart-turn v3.2, which ships with Pipecat."""

    def __init__(self):
        """Load the model."""
        from pipecat.audio.turn.smart_turn.local_smart_turn_v3 import LocalSmartTurnAnalyzerV3

        self._analyzer = LocalSmartTurnAnalyzerV3(sample_rate=SAMPLE_RATE_HZ)

    def is_complete(self, pcm: np.ndarray) -> bool:
        """Whether whoever speaks has finished.

        Args:
            pcm: Float32, 24 kHz, up to now; the last eight seconds count.
        """
        self._analyzer.set_sample_rate(SAMPLE_RATE_HZ)
        return self._analyzer._predict_endpoint(pcm.astype(np.float32))["prediction"] == 1

    def decide(self, dialogues: Iterable[Dialogue]) -> Decisions:
        """Ask it of every sentence and every pause that was spoken while the agent was to answer.

        Args:
            dialogues: Conversations that are over.
        """
        found = Decisions()
        for dialogue in dialogues:
            for moment in dialogue.moments:
                if moment.kind not in ("ask", "pause"):
                    continue
                start_secs = moment.start_secs - _LEAD_SECS
                heard = _stretch(dialogue, start_secs, moment.end_secs + SILENCE_SECS)
                found.complete_after.append(self.is_complete(heard))
                if moment.pause_secs is not None:
                    heard = _stretch(dialogue, start_secs, moment.pause_secs[0] + SILENCE_SECS)
                    found.complete_in_pause.append(self.is_complete(heard))
        return found


def _stretch(dialogue: Dialogue, start_secs: float, end_secs: float) -> np.ndarray:
    first = max(0, round(start_secs * SAMPLE_RATE_HZ))
    return dialogue.user_pcm[first : round(end_secs * SAMPLE_RATE_HZ)]
