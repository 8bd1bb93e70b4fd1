"""Sampling settings and random numbers of all slots; the choice itself is part of the graphs.

The rule is that of :mod:`pipecat_duplex.engine.torch.sampling`: an argmax over noisy scores among
the top-k, each slot with noise of its own, drawn only in steps in which it runs.
"""

import numpy as np

from pipecat_duplex.engine.model import MIN_TEMPERATURE
from pipecat_duplex.engine.onnx.graph import Graph
from pipecat_duplex.session import SessionConfig

LEAST = np.float32(2**-40)
"""The generator gives an exact zero now and then, whose logarithm would be infinite."""


class SlotSampling:
    """How each slot chooses among one vocabulary."""

    def __init__(self, slots: int):
        """Initialize every slot greedy: no noise, temperature 1, top-1."""
        self._inverse_temperature = np.ones((slots, 1), np.float32)
        self._last_rank = np.zeros((slots, 1), np.int64)
        self._noisy: list[np.random.Generator | None] = [None] * slots
        self._put_back: dict[int, np.ndarray] = {}

    def set_slot(
        self, slot: int, temperature: float, top_k: int, generator: np.random.Generator
    ) -> None:
        """Set how a slot chooses; a temperature of 0 is greedy."""
        greedy = temperature < MIN_TEMPERATURE
        self._put_back.pop(slot, None)
        self._noisy[slot] = None if greedy else generator
        self._inverse_temperature[slot] = 1.0 if greedy else 1 / temperature
        self._last_rank[slot] = 0 if greedy else top_k - 1

    def prepare(self, graph: Graph, slots: np.ndarray) -> None:
        """Fill the sampling inputs of a graph for these slots, and draw their noise."""
        count = len(slots)
        noise = graph.inputs["noise"]
        vocabulary = noise.shape[-1]
        ranks = np.minimum(self._last_rank[slots], vocabulary - 1)
        graph.inputs["inverse_temperature"][:count] = self._inverse_temperature[slots]
        graph.inputs["last_rank"][:count] = ranks
        graph.inputs["widest_top_k"][0] = ranks.max() + 1
        for row, slot in enumerate(slots.tolist()):
            noise[row, :, : ranks[row, 0] + 1] = self._draw(slot, noise.shape[1], ranks[row, 0] + 1)

    def _draw(self, slot: int, choices: int, top_k: int) -> np.ndarray | float:
        """Gumbel noise for each token that a slot may choose, or none."""
        generator = self._noisy[slot]
        if generator is None:
            return 0.0
        if slot in self._put_back:
            return self._put_back.pop(slot)
        drawn = generator.standard_exponential((choices, top_k), dtype=np.float32)
        return -np.log(np.maximum(drawn, LEAST))

    def put_back(self, graph: Graph, slots: np.ndarray) -> None:
        """Keep the noise that ``prepare`` has just drawn, for the next time it is asked for."""
        for row, slot in enumerate(slots.tolist()):
            if self._noisy[slot] is not None:
                top_k = graph.inputs["last_rank"][row, 0] + 1
                self._put_back[slot] = graph.inputs["noise"][row, :, :top_k].copy()


class Sampler:
    """Text and audio sampling of all slots."""

    def __init__(self, slots: int):
        """Initialize every slot greedy."""
        self.text = SlotSampling(slots)
        self.audio = SlotSampling(slots)

    def set_slot(self, slot: int, config: SessionConfig) -> None:
        """Begin a conversation: its settings, and its random numbers from the start.

        Args:
            slot: The slot.
            config: Its sampling settings. A seed of None is 0: who opens a session draws one.
        """
        sampling = config.sampling()
        generator = np.random.Generator(np.random.SFC64(config.seed or 0))
        self.text.set_slot(slot, sampling.text_temperature, sampling.text_top_k, generator)
        self.audio.set_slot(slot, sampling.audio_temperature, sampling.audio_top_k, generator)
