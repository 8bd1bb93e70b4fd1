"""Hearing that the user wants the floor while the agent speaks.

A model of conversations yields by itself; one that is small, or that hears a voice unlike those of
its training, yields late or not at all, and falls silent at a cough. A small recurrent network
listens beside it, for this alone: 20 ms at a time it tells somebody who wants the floor from
somebody who says "uh huh", and both from a sound that is no speech. ``training/barge_in.py`` trains
it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipecat_duplex.conversation.barge_in import Overlap

if TYPE_CHECKING:
    from pipecat_duplex.engine.onnx.recurrent import RecurrentNetwork

FILE = "barge_in.onnx"
"""The network, in the folder of a checkpoint that needs this."""


class BargeInNetwork:
    """Tells what users do, in all slots of an engine. Belongs to the engine's thread."""

    def __init__(self, network: "RecurrentNetwork"):
        """Initialize.

        Args:
            network: Gives three scores: for nobody, a backchannel, and the floor.
        """
        self._network = network

    @classmethod
    def load(cls, checkpoint: str | Path, slots: int) -> "BargeInNetwork | None":
        """Load the network that a checkpoint brings, as ``onnx.recurrent.load_network`` does."""
        from pipecat_duplex.engine.onnx.recurrent import load_network

        network = load_network(checkpoint, FILE, slots)
        return None if network is None else cls(network)

    def join(self, slot: int) -> None:
        """Begin a conversation in a slot."""
        self._network.join(slot)

    def hear(self, mels: Mapping[int, np.ndarray]) -> dict[int, Overlap]:
        """Hear a step.

        Args:
            mels: The user's log mel spectrum by slot, float32, shape ``(FRAMES, BANDS)``.

        Returns:
            By slot, what it takes the user to do at the end of the step.
        """
        return {slot: _overlap(scores) for slot, scores in self._network.scores(mels)}


def _overlap(scores: np.ndarray) -> Overlap:
    shares = np.exp(scores)
    return Overlap(*(shares / shares.sum()).tolist())
