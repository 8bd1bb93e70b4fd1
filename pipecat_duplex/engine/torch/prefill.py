"""Known frames written into a slot in a parallel pass, beside the conversations of its neighbours.

moshi's modules keep their streaming state in objects that can be taken out and put back. For a
prefill, states of a batch of one take their place: however long the pass, no row of a neighbour is
part of it. What came of it is then copied into the slot's row. The attention's ring is longer than
the model's context meanwhile, so that the first queries of a pass still see all of theirs.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from moshi.modules.streaming import StreamingModule
from moshi.modules.transformer import RingKVCache
from moshi.utils.compile import no_compile, no_cuda_graph

States = dict[str, Any]


class SoloStates:
    """Streaming states of one conversation, beside those of a module's batch."""

    def __init__(self, module: StreamingModule, longest_pass: int):
        """Initialize at the beginning of a conversation.

        Args:
            module: Streaming already, for its batch.
            longest_pass: Steps of its attention that one pass takes at most.
        """
        self._module = module
        batch = module.get_streaming_state()
        module.set_streaming_state(dict.fromkeys(batch))
        try:
            module.streaming(1)
            self._states = module.get_streaming_state()
        finally:
            module.set_streaming_state(batch)
        for state in self._states.values():
            ring = getattr(state, "kv_cache", None)
            if ring is not None:
                state.kv_cache = _longer_ring(ring, longest_pass)

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Let the module run for this conversation alone. No graphs: shapes differ."""
        batch = self._module.get_streaming_state()
        self._module.set_streaming_state(self._states)
        try:
            with ExitStack() as stack:
                stack.enter_context(no_compile())
                stack.enter_context(no_cuda_graph())
                yield
        finally:
            self._module.set_streaming_state(batch)

    def copy_into(self, slot: int) -> None:
        """Put a slot of the module's batch into this conversation's state."""
        for name, target in self._module.get_streaming_state().items():
            source = self._states[name]
            if source is not None:
                _copy_state(source, target, slot)


def _longer_ring(ring: RingKVCache, longest_pass: int) -> RingKVCache:
    _, _, heads, context, dim_per_head = ring.cache.shape
    return RingKVCache(
        1,
        heads,
        dim_per_head,
        context + longest_pass - 1,
        ring.respect_exec_mask,
        device=ring.cache.device,
        dtype=ring.cache.dtype,
    )


def _copy_state(source: Any, target: Any, slot: int) -> None:
    for name, value in vars(source).items():
        if isinstance(value, RingKVCache):
            _copy_ring(value, getattr(target, name), slot)
        elif isinstance(value, torch.Tensor) and name != "exec_mask":
            getattr(target, name)[slot] = value[0]


def _copy_ring(source: RingKVCache, target: RingKVCache, slot: int) -> None:
    end = int(source.end_offset[0])
    kept = torch.arange(max(0, end - target.capacity), end, device=target.cache.device)
    # The views share memory with the ring of all slots.
    row = target.cache[:, slot]
    row[:, :, kept % target.capacity] = source.cache[:, 0, :, kept % source.capacity]
    target.end_offset[slot] = end
