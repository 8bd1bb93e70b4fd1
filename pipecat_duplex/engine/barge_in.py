"""Hearing that the user wants the floor while the agent speaks.

A model of conversations yields by itself; one that is small, or that hears a voice unlike those of
its training, yields late or not at all, and falls silent at a cough. A small recurrent network
listens beside it, for this alone: 20 ms at a time it tells somebody who wants the floor from
somebody who says "uh huh", and both from a sound that is no speech. ``training/barge_in.py`` trains
it; its layers are a linear one, two of GRU cells and a linear one. It knows no checkpoint, no codec
and no language model.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from pipecat_duplex.conversation.barge_in import Overlap
from pipecat_duplex.conversation.loudness import FRAMES, log_mel
from pipecat_duplex.engine.checkpoint import find_folder
from pipecat_duplex.session import STEP_SAMPLES, CheckpointError, one_line

FILE = "barge_in.npz"
"""The weights, in the folder of a checkpoint that needs this."""

AT_ONCE = 8
"""Conversations that are computed together. With more rows, BLAS shares its products out among
threads, which wait for each other on a busy machine: 12 ms instead of 0.03 were measured."""


class BargeInNetwork:
    """The network, for all slots of an engine at a time. Belongs to the engine's thread."""

    def __init__(self, weights: Mapping[str, np.ndarray], slots: int):
        """Initialize with every slot at its start.

        Args:
            weights: Of the layers, by torch's names.
            slots: Conversations at a time.
        """
        self._weights = weights
        hidden = len(weights["enter.bias"])
        self._before = np.zeros((slots, STEP_SAMPLES), np.float32)
        self._state = np.zeros((2, slots, hidden), np.float32)

    def join(self, slot: int) -> None:
        """Begin a conversation in a slot."""
        self._before[slot] = 0.0
        self._state[:, slot] = 0.0

    def hear(self, frames: Mapping[int, np.ndarray]) -> dict[int, Overlap]:
        """Hear a step.

        Args:
            frames: The user's audio by slot, float32, shape ``(STEP_SAMPLES,)``, 24 kHz.

        Returns:
            By slot, what it takes the user to do at the end of the step.
        """
        told: dict[int, Overlap] = {}
        slots = list(frames)
        for first in range(0, len(slots), AT_ONCE):
            told |= self._hear_some(slots[first : first + AT_ONCE], frames)
        return told

    def _hear_some(
        self, slots: list[int], frames: Mapping[int, np.ndarray]
    ) -> Iterator[tuple[int, Overlap]]:
        now = np.stack([frames[slot] for slot in slots])
        entered = np.maximum(self._linear("enter", log_mel(self._before[slots], now)), 0.0)
        self._before[slots] = now
        first, second = self._state[0, slots], self._state[1, slots]
        for frame in range(FRAMES):
            first = self._gru(0, entered[:, frame], first)
            second = self._gru(1, first, second)
        self._state[0, slots], self._state[1, slots] = first, second
        scores = np.exp(self._linear("leave", second))
        shares = (scores / scores.sum(1, keepdims=True)).tolist()
        return zip(slots, (Overlap(*own) for own in shares), strict=True)

    def _linear(self, name: str, heard: np.ndarray) -> np.ndarray:
        return heard @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _gru(self, layer: int, heard: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Return the next state of a layer's cells; gates are in torch's order."""
        size = state.shape[1]
        own = heard @ self._weights[f"gru.weight_ih_l{layer}"].T
        own += self._weights[f"gru.bias_ih_l{layer}"]
        past = state @ self._weights[f"gru.weight_hh_l{layer}"].T
        past += self._weights[f"gru.bias_hh_l{layer}"]
        gates = 1.0 / (1.0 + np.exp(-(own[:, : 2 * size] + past[:, : 2 * size])))
        reset, keep = gates[:, :size], gates[:, size:]
        new = np.tanh(own[:, 2 * size :] + reset * past[:, 2 * size :])
        return (1.0 - keep) * new + keep * state


def load_network(checkpoint: str | Path, slots: int) -> BargeInNetwork | None:
    """Load the network that a checkpoint brings. Blocks.

    Args:
        checkpoint: As in ``Engine.load``. Those on the hub bring none.
        slots: Conversations at a time.

    Raises:
        CheckpointError: Its file is broken, or holds another network.
    """
    folder = find_folder(checkpoint)
    if folder is None or not (folder / FILE).is_file():
        return None
    try:
        with np.load(folder / FILE) as data:
            network = BargeInNetwork(dict(data), slots)
        network.hear({0: np.zeros(STEP_SAMPLES, np.float32)})
    except (OSError, EOFError, BadZipFile, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder / FILE} cannot be loaded: {one_line(error)}") from error
    network.join(0)
    return network
