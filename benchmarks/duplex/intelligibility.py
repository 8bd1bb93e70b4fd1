"""How well the agent is understood: word errors of pocketsphinx, beside those on the source."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from training.recogniser import Recogniser, word_errors
from training.sizes import SAMPLE_RATE


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
