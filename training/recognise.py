"""How well the codec's sound is understood: word errors of pocketsphinx with the domain's words.

    python -m training.recognise DATA CODEC [--answers 40]     codec round trip beside the source

The recogniser knows the agent's vocabulary and no grammar beyond a free loop of its words, so it
has to hear each one. It is a weak listener: read its errors beside those on the source voice.
"""

import argparse
from pathlib import Path

import torch

from training.bank import load_codec
from training.codec import agent_timeline
from training.corpus import read_corpus
from training.recogniser import Recogniser, word_errors, word_loop


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
    mimi, recogniser = load_codec(options.codec), Recogniser(word_loop())
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
