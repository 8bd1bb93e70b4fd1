"""The mean of two states of the language model: ``python -m training.average RUN RUN OUT``.

``--share 0.2`` takes a fifth of the first and four fifths of the second.

Two states of one training that went different ways for a while lie in one valley. Their mean does
what each does, and is steadier on voices of its own (Wortsman et al., "Model soups", 2022).
"""

import argparse
from pathlib import Path

import torch

from training.progress import save_state


def average(first: dict, second: dict, share: float = 0.5) -> dict:
    """A state with the mean weights of two, so much of the first; all else is the second's."""
    pairs = zip(first["heads"], second["heads"], strict=True)
    return second | {
        "lm": mean_weights(first["lm"], second["lm"], share),
        "heads": [mean_weights(one, other, share) for one, other in pairs],
    }


def mean_weights(first: dict, second: dict, share: float) -> dict:
    """So much of the first state's tensors, and the rest of the second's."""
    return {
        name: torch.lerp(second[name], tensor, share) if tensor.is_floating_point() else tensor
        for name, tensor in first.items()
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs=2)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.5)
    options = parser.parse_args()
    states = [torch.load(run / "last.pt", weights_only=True) for run in options.runs]
    options.out.mkdir(parents=True, exist_ok=True)
    save_state(average(*states, options.share), options.out / "last.pt")


if __name__ == "__main__":
    main()
