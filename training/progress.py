"""What every training does beside learning: tell how it goes, and save what is needed to go on."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch

PRINT_EVERY = 20  # steps
SAVE_EVERY = 100
SMOOTHING = 0.95


class Progress:
    """Running means of a training's terms, printed now and then with the time that a step takes."""

    def __init__(self, step: int) -> None:
        self._means: dict[str, float] = {}
        self._first, self._started = step, time.monotonic()

    @property
    def minutes(self) -> float:
        """Time since the training was started, or started again."""
        return (time.monotonic() - self._started) / 60

    def rate(self, minutes: float, *, anneal: bool) -> float:
        """Factor of the learning rate: with ``anneal`` it falls to zero over these minutes."""
        return max(1 - self.minutes / minutes, 0.0) if anneal else 1.0

    def add(self, step: int, terms: dict[str, float]) -> None:
        """Note the terms of a step; ``step`` counts it already."""
        for name, value in terms.items():
            self._means[name] = SMOOTHING * self._means.get(name, value) + (1 - SMOOTHING) * value
        if step % PRINT_EVERY == 0:
            seconds = 60 * self.minutes / (step - self._first)
            print(f"{step} {seconds:.2f} s/step {line(self._means)}", flush=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every training has."""
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE")


def prepare(options: argparse.Namespace) -> dict[str, Any]:
    """Set torch up as the command line says, and return the changed options of the run."""
    set_up_torch(options.threads)
    return {name: json.loads(value) for name, value in (item.split("=") for item in options.set)}


def set_up_torch(threads: int) -> None:
    """Without AMX: on some virtual machines it computes wrong, in bfloat16 and in int8."""
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)


def line(terms: dict[str, float]) -> str:
    """Terms as one line of JSON."""
    return json.dumps({name: round(value, 3) for name, value in terms.items()})


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write a training's state; whoever is stopped meanwhile leaves the former one whole."""
    unfinished = path.with_suffix(".tmp")
    torch.save(state, unfinished)
    unfinished.rename(path)
