"""Hearing what users say, as codes of the codec's first codebook.

The first codebook carries the phones. A small codec that learned them from synthetic voices hears
few of a person's: its encoder takes raw sound, and needs more voices than a small corpus has. A
recurrent network on the log mel spectrum, which needs less, tells the codes in its place. They are
the codec's own, so the language model and all that keeps codes know no difference.
``training/hearing.py`` trains it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipecat_duplex.engine.onnx.recurrent import RecurrentNetwork

FILE = "hearing.onnx"
"""The network, in the folder of a checkpoint that needs this."""


class PhoneHearing:
    """Tells the codes of users' phones, in all slots of an engine. Belongs to its thread."""

    def __init__(self, network: "RecurrentNetwork"):
        """Initialize.

        Args:
            network: Gives a score for each code of the first codebook.
        """
        self._network = network

    @classmethod
    def load(cls, checkpoint: str | Path, slots: int) -> "PhoneHearing | None":
        """Load the network that a checkpoint brings, as ``onnx.recurrent.load_network`` does."""
        from pipecat_duplex.engine.onnx.recurrent import load_network

        network = load_network(checkpoint, FILE, slots)
        return None if network is None else cls(network)

    def join(self, slot: int) -> None:
        """Begin a conversation in a slot."""
        self._network.join(slot)

    def hear(self, mels: Mapping[int, np.ndarray]) -> dict[int, int]:
        """Hear a step.

        Args:
            mels: The user's log mel spectrum by slot, float32, shape ``(FRAMES, BANDS)``.

        Returns:
            By slot, the code of the step.
        """
        return {slot: int(scores.argmax()) for slot, scores in self._network.scores(mels)}
