"""pocketsphinx, which hears how well the agent speaks: a weak listener that runs anywhere.

Read its errors beside those on the source voice, which says the same words.
"""

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
