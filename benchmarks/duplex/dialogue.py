"""What came of a conversation: both voices, the agent's words, and the moments that count."""

from dataclasses import dataclass, field

import numpy as np

from pipecat_duplex.conversation.monologue import Monologue, Word
from pipecat_duplex.session import SAMPLE_RATE_HZ, STEP_SAMPLES, STEP_SECS

SOUND_LEVEL = 0.01
"""Root mean square above which a voice is heard: -40 dB of full scale."""

QUIET_SECS = 0.25
"""Silence after which a listener takes the agent to have finished."""


@dataclass
class Moment:
    """A stretch of a conversation that is measured. Times are seconds of the conversation.

    Attributes:
        kind: ``opening``, ``ask``, ``pause``, ``barge_in``, ``backchannel``, ``story``,
            ``sound``, ``sound_over`` or ``overlap``.
        text: What the user said.
        text_kind: Its kind in the embedded model's world.
        owed: The answer it wants there.
        start_secs: When the first word began.
        end_secs: When the last word ended.
        pause_secs: Begin and end of a pause inside the sentence.
        over: The long answer that was talked over: its question's end, and the answer owed.
        until_secs: When the user stopped listening and went on.
    """

    kind: str
    text: str
    text_kind: str
    owed: str
    start_secs: float
    end_secs: float
    pause_secs: tuple[float, float] | None = None
    over: tuple[float, str] | None = None
    until_secs: float = 0.0


@dataclass
class Dialogue:
    """A conversation that is over.

    Attributes:
        voice: The user's.
        group: ``unseen`` or ``seen``, ``people``, ``sounds``, ``echo`` or ``overlap``.
        user_pcm: What the microphone picked up, float32, 24 kHz.
        agent_pcm: What the user heard, likewise, on the same time line.
        words: The agent's, each with the second at which it began to be heard.
        moments: What is measured.
        compute_secs: Computing time of each step, of the whole batch.
        late_steps: Steps that were answered later than a step after they were spoken.
        dropped_steps: Steps of speech, of either side, that were left out to catch up.
        failure: Why it ended early, if it did.
    """

    voice: str
    group: str
    user_pcm: np.ndarray
    agent_pcm: np.ndarray
    words: list[tuple[float, str]]
    moments: list[Moment]
    compute_secs: list[float] = field(default_factory=list)
    late_steps: int = 0
    dropped_steps: int = 0
    failure: str | None = None


class Ear:
    """What the user hears of the agent, as it comes out of a loudspeaker."""

    def __init__(self, quiet_secs: float = QUIET_SECS):
        """Initialize with silence.

        Args:
            quiet_secs: Silence after which the agent is not heard any more.
        """
        self._quiet_secs = quiet_secs
        self._pieces: list[tuple[int, np.ndarray]] = []  # first sample, audio
        self._loud_secs: list[tuple[float, float]] = []
        self._played_until = 0
        self._monologue = Monologue()
        self._step = -1
        self._piece_secs: dict[int, float] = {}
        self.words: list[tuple[float, str]] = []

    def hear(self, now_secs: float, pcm: np.ndarray) -> None:
        """Play audio, after what is playing.

        Args:
            now_secs: When it reached the loudspeaker.
            pcm: Float32, 24 kHz.
        """
        start = max(round(now_secs * SAMPLE_RATE_HZ), self._played_until)
        self._played_until = start + len(pcm)
        self._pieces.append((start, pcm))
        if len(pcm) and float(np.sqrt(np.mean(pcm**2))) > SOUND_LEVEL:
            self._loud_secs.append((start / SAMPLE_RATE_HZ, self._played_until / SAMPLE_RATE_HZ))

    def flush(self, now_secs: float) -> None:
        """Throw away what was not played yet.

        Args:
            now_secs: The time.
        """
        now = round(now_secs * SAMPLE_RATE_HZ)
        self._pieces = [(at, pcm[: max(0, now - at)]) for at, pcm in self._pieces]
        self._played_until = min(self._played_until, now)

    def note_piece(self, now_secs: float, step: int, piece: str | None) -> None:
        """Take the monologue's piece of a step; steps without one may be left out.

        Args:
            now_secs: When it came.
            step: Index of the step.
            piece: A SentencePiece piece.
        """
        if step > self._step + 1:
            self._note_word(self._monologue.feed(step - 1, None))
        self._step = step
        self._piece_secs[step] = now_secs
        self._note_word(self._monologue.feed(step, piece))

    def is_heard(self, now_secs: float) -> bool:
        """Whether the agent speaks, or has just spoken."""
        return self.heard_since(now_secs - self._quiet_secs)

    def heard_since(self, secs: float) -> bool:
        """Whether the agent was heard after this moment."""
        return bool(self._loud_secs) and self._loud_secs[-1][1] > secs

    def played(self, start_secs: float, samples: int) -> np.ndarray:
        """Return what the loudspeaker has played, as far as it is known.

        Args:
            start_secs: From when on.
            samples: How much.
        """
        first = round(start_secs * SAMPLE_RATE_HZ)
        heard = np.zeros(samples, np.float32)
        for start, pcm in reversed(self._pieces):
            if start + len(pcm) <= first:
                break
            low, high = max(start, first), min(start + len(pcm), first + samples)
            if low < high:
                heard[low - first : high - first] = pcm[low - start : high - start]
        return heard

    def finish(self, secs: float) -> np.ndarray:
        """Complete the last word, and return all that was heard.

        Args:
            secs: Length of the conversation.
        """
        self._note_word(self._monologue.end_utterance())
        heard = np.zeros(round(secs * SAMPLE_RATE_HZ), np.float32)
        for start, pcm in self._pieces:
            place = heard[start : start + len(pcm)]
            place[:] = pcm[: len(place)]
        return heard

    def _note_word(self, word: Word | None) -> None:
        if word is not None and word.text.strip():
            self.words.append((self._piece_secs[word.first_step], word.text.strip()))


def steps(secs: float) -> int:
    """Return how many steps last this long."""
    return round(secs / STEP_SECS)


def padded(pcm: np.ndarray) -> np.ndarray:
    """Return a step of audio from up to as many samples."""
    step = np.zeros(STEP_SAMPLES, np.float32)
    step[: len(pcm)] = pcm
    return step
