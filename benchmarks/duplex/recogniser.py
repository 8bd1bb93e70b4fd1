"""How well speech is understood: word errors of pocketsphinx.

It is a weak listener: read its errors beside those on the source voice, which says the same words.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import soxr

from training import world
from training.sizes import SAMPLE_RATE

_RATE = 16_000


def sentences() -> str:
    """Return a grammar of all that the agent can say, in JSGF."""
    return f"public <s> = {' | '.join(world.answers())};"


def word_loop() -> str:
    """Return a grammar of the agent's words in any order: slow, and it has to hear each one."""
    return f"public <s> = ({' | '.join(world.agent_words())})+;"


class Recogniser:
    """pocketsphinx with a grammar."""

    def __init__(self, grammar: str):
        """Initialize the recogniser.

        Args:
            grammar: What can be said: rules in JSGF, of words that pocketsphinx knows.
        """
        from pocketsphinx import Decoder  # needed for nothing else

        self.decoder = Decoder(samprate=_RATE, loglevel="FATAL", lm=None)
        self.decoder.add_jsgf_string("agent", f"#JSGF V1.0; grammar agent; {grammar}")
        self.decoder.activate_search("agent")

    def words(self, samples: np.ndarray) -> list[str]:
        """Return the words heard.

        Args:
            samples: Float32 mono, 24 kHz; at any level.
        """
        samples = soxr.resample(samples, SAMPLE_RATE, _RATE)
        peak = max(float(np.abs(samples).max()), 1e-3)
        pcm = (samples / peak * 20_000).astype(np.int16)
        self.decoder.start_utt()
        self.decoder.process_raw(pcm.tobytes(), full_utt=True)
        self.decoder.end_utt()
        hypothesis = self.decoder.hyp()
        return hypothesis.hypstr.split() if hypothesis else []


def word_errors(heard: list[str], said: list[str]) -> int:
    """Return the substitutions, insertions and deletions that lead from ``said`` to ``heard``."""
    row = list(range(len(said) + 1))
    for i, word in enumerate(heard, start=1):
        previous, row = row, [i]
        for j, wanted in enumerate(said, start=1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (word != wanted)))
    return row[-1]


@dataclass(frozen=True)
class Spoken:
    """One answer in two renditions or more.

    Attributes:
        text: Its words.
        renditions: Float32, 24 kHz, by name.
    """

    text: str
    renditions: dict[str, np.ndarray]


@dataclass(frozen=True)
class Intelligibility:
    """Word errors by one grammar.

    Attributes:
        words: Words that were said.
        rates: Errors a word, by rendition.
        ratio: The agent's over the source voice's; ``None`` if the source has no errors.
        interval: Of the ratio, 95 percent, by resampling the answers.
    """

    words: int
    rates: dict[str, float]
    ratio: float | None
    interval: tuple[float, float] | None


def intelligibility(answers: Iterable[Spoken], grammar: str, seed: int = 0) -> Intelligibility:
    """Recognise every rendition of answers.

    Args:
        answers: Each with the renditions ``agent`` and ``source``, and any others.
        grammar: What can be said: rules in JSGF.
        seed: Of the resampling.
    """
    recogniser, silence = Recogniser(grammar), np.zeros(SAMPLE_RATE // 2, np.float32)
    known: dict[tuple[str, str], int] = {}
    errors: dict[str, list[int]] = {}
    words: list[int] = []
    for answer in answers:
        said = answer.text.split()
        words.append(len(said))
        for name, pcm in answer.renditions.items():
            key = (name, answer.text)
            if name == "agent" or key not in known:  # only the agent says it anew each time
                heard = recogniser.words(np.concatenate([silence, pcm, silence]))
                known[key] = word_errors(heard, said)
            errors.setdefault(name, []).append(known[key])
    total = sum(words)
    rates = {name: sum(counts) / total for name, counts in errors.items()}
    ratio, interval = _ratio(np.array(errors["agent"]), np.array(errors["source"]), seed)
    return Intelligibility(total, rates, ratio, interval)


def _ratio(
    agent: np.ndarray, source: np.ndarray, seed: int, rounds: int = 2000
) -> tuple[float | None, tuple[float, float] | None]:
    """Ratio of two sums over the same answers, with its bootstrap interval."""
    if not source.sum():
        return None, None
    picks = np.random.default_rng(seed).integers(len(agent), size=(rounds, len(agent)))
    sums = agent[picks].sum(1), np.maximum(source[picks].sum(1), 0.5)
    low, high = np.percentile(sums[0] / sums[1], [2.5, 97.5])
    return float(agent.sum() / source.sum()), (float(low), float(high))
