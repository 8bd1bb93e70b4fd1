"""The ways with long calls, each as an engine."""

import asyncio
import math
from typing import Literal

import numpy as np

from pipecat_duplex.engine import Engine
from pipecat_duplex.engine.loop import StepLoop
from pipecat_duplex.engine.onnx import load_model
from pipecat_duplex.engine.onnx.memory import Ring
from pipecat_duplex.engine.onnx.model import Lane, OnnxModel
from pipecat_duplex.engine.persona import Voices

Way = Literal["ring", "prompt", "rebuild"]
WAYS: tuple[Way, ...] = ("ring", "prompt", "rebuild")

FIRST_COLUMNS = 4
"""Columns that ``prompt`` never forgets."""


async def load_engine(way: Way, checkpoint: str, slots: int, threads: int) -> Engine:
    """Load a checkpoint that treats long calls in one way, on ONNX Runtime."""
    if way != "prompt":
        return await Engine.load(
            checkpoint, slots=slots, runtime="onnx", cpu_threads=threads, long_calls=way
        )
    loop = StepLoop(lambda: load_keeping_prompt(checkpoint, slots, threads), slots, 0.005)
    loaded = await asyncio.wrap_future(loop.start())
    return Engine(loop, loaded, slots, Voices(None))


def load_keeping_prompt(checkpoint: str, slots: int, threads: int = 1) -> OnnxModel:
    """Load a model whose language model keeps its first columns for ever."""
    model = load_model(checkpoint, slots, threads)
    model.__class__ = PromptKeepingModel
    model.restart()
    return model


class PromptKeepingModel(OnnxModel):
    """A model that forgets all but the first columns."""

    def restart(self) -> None:
        """Build all state anew."""
        super().restart()
        period = self._config["max_period"]
        self._memory.ring = PromptKeepingRing(self._sessions["temporal"], self.slots, period)
        self._lanes = [
            Lane(self._sessions, self._memory, self._sampler, self.slots)
            for _ in range(self._cpu_threads)
        ]


class PromptKeepingRing(Ring):
    """A ring whose first places are not written again, as attention sinks are kept.

    Past the context, the kept keys turn on with time, so that they are always as far away as the
    oldest step may be. What would take their places is not remembered: four steps of 512. While it
    would, one kept key is hidden by the graph's mask.
    """

    def __init__(self, session, slots: int, max_period: float):
        """Initialize for a graph; see :class:`Ring`.

        Args:
            session: The graph.
            slots: Number of slots.
            max_period: Of the rotation.
        """
        super().__init__(session, slots)
        width = self._data.shape[-1]
        angles = np.exp(-math.log(max_period) * 2 / width * np.arange(width // 2))
        self._turn = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def write(self, slots: np.ndarray, positions: np.ndarray, new: np.ndarray) -> None:
        """Keep what a step gave; see :class:`Ring`."""
        if new.shape[1] > 1:
            super().write(slots, positions, new)
            return
        past = positions >= self.context
        for slot in slots[past].tolist():
            self._turn_kept(slot)
        written = ~past | (positions % self.context >= FIRST_COLUMNS)
        super().write(slots[written], positions[written], new[written])

    def _turn_kept(self, slot: int) -> None:
        keys = self._data[:, 0, slot, :, :FIRST_COLUMNS]
        even, odd = keys[..., 0::2].copy(), keys[..., 1::2].copy()
        cosine, sine = self._turn
        keys[..., 0::2] = even * cosine - odd * sine
        keys[..., 1::2] = even * sine + odd * cosine
