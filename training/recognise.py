"""How well the agent is understood: word errors of pocketsphinx with the domain's words.

    python -m training.recognise DATA CODEC [--answers 40]     codec round trip beside the source

The recogniser knows the agent's vocabulary and no grammar beyond a free loop of its words, so it
has to hear each one. It is a weak listener: read its errors beside those on the source voice.
"""

import argparse
from pathlib import Path

import numpy as np
import soxr
import torch
from pocketsphinx import Decoder

from training import world
from training.bank import load_codec
from training.codec import agent_timeline
from training.corpus import read_corpus
from training.sizes import SAMPLE_RATE

_RATE = 16_000


class Recogniser:
    """pocketsphinx with a free loop over the agent's words."""

    def __init__(self) -> None:
        words = " | ".join(world.agent_words())
        self.decoder = Decoder(samprate=_RATE, loglevel="FATAL", lm=None)
        known = [w for w in world.agent_words() if self.decoder.lookup_word(w)]
        words = " | ".join(known)
        self.decoder.add_jsgf_string("loop", f"#JSGF V1.0; grammar g; public <s> = ({words})+;")
        self.decoder.activate_search("loop")

    def words(self, samples: np.ndarray) -> list[str]:
        """The words heard in float32 samples at 24 kHz."""
        samples = soxr.resample(samples, SAMPLE_RATE, _RATE)
        peak = max(float(np.abs(samples).max()), 1e-3)
        pcm = (samples / peak * 20_000).astype(np.int16)
        self.decoder.start_utt()
        self.decoder.process_raw(pcm.tobytes(), full_utt=True)
        self.decoder.end_utt()
        hypothesis = self.decoder.hyp()
        return hypothesis.hypstr.split() if hypothesis else []


def word_errors(heard: list[str], said: list[str]) -> int:
    """Substitutions, insertions and deletions that lead from ``said`` to ``heard``."""
    row = list(range(len(said) + 1))
    for i, word in enumerate(heard, start=1):
        previous, row = row, [i]
        for j, wanted in enumerate(said, start=1):
            row.append(min(previous[j] + 1, row[-1] + 1, previous[j - 1] + (word != wanted)))
    return row[-1]


@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("codec", type=Path)
    parser.add_argument("--answers", type=int, default=40)
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    torch.set_num_threads(2)
    mimi, recogniser = load_codec(options.codec), Recogniser()
    answers = list(read_corpus(options.data, "agent"))
    step = max(len(answers) // options.answers, 1)
    source = coded = total = 0
    for utterance in answers[::step]:
        sound, _ = agent_timeline(utterance)
        made = mimi.decode(mimi.encode(torch.from_numpy(sound)[None, None]))[0, 0].numpy()
        said = utterance.text.split()
        source += word_errors(recogniser.words(sound), said)
        coded += word_errors(recogniser.words(made), said)
        total += len(said)
    print(f"{total} words: errors a word {source / total:.3f} source, {coded / total:.3f} coded")


if __name__ == "__main__":
    main()
