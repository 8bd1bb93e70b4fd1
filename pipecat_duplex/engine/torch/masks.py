"""Streaming modules of which only some rows of the batch keep what a call leaves behind."""

from collections.abc import Iterable

import torch
from moshi.modules.streaming import StreamingModule


class MaskedModules:
    """Streaming modules that run for the same slots.

    All rows of the batch are always computed; a mask says which slots keep the result in their
    state. Setting it walks every module, so it is only set when it changed.
    """

    def __init__(self, modules: list[StreamingModule], slots: int):
        """Initialize with the modules already streaming, every slot running."""
        self._modules = modules
        self._running = [True] * slots

    def run_only(self, running: list[bool]) -> None:
        """Let the next call change the state of these slots only."""
        if running != self._running:
            mask = torch.tensor(running)
            for module in self._modules:
                module.set_exec_mask(mask)
            self._running = running

    @property
    def running(self) -> list[bool]:
        """Which slots the next call changes."""
        return self._running

    @running.setter
    def running(self, running: list[bool]) -> None:
        """Take note of masks that were put back to what they were."""
        self._running = running

    def reset(self, slots: Iterable[int]) -> None:
        """Put slots back to their beginning."""
        chosen = [slot in slots for slot in range(len(self._running))]
        mask = torch.tensor(chosen)
        for module in self._modules:
            module.reset_streaming(mask)
        # moshi lets a slot run that was reset.
        self._running = [a or b for a, b in zip(self._running, chosen, strict=True)]
