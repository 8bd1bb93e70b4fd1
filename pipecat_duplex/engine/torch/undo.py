"""A copy of what moshi's streaming modules remember, so that a step that failed can be undone."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from moshi.modules.streaming import StreamingModule
from moshi.modules.transformer import RingKVCache


class StateCopy:
    """Copies the streaming states of modules, and brings them back.

    Rings of keys and values are left out, but not their ends: a step that is taken again writes to
    the same places.
    """

    def __init__(self, modules: Iterable[StreamingModule]):
        """Initialize around modules that stream already.

        Args:
            modules: The outermost ones.
        """
        self._places = [
            place
            for module in modules
            for state in module.get_streaming_state().values()
            if state is not None
            for place in _tensors_of(state)
        ]
        self._live: list[torch.Tensor] = []
        self._copies: list[torch.Tensor] = []

    def save(self) -> None:
        """Copy all states."""
        live = [getattr(owner, name) for owner, name in self._places]
        if not self._copies:
            self._copies = [tensor.clone() for tensor in live]
        else:
            _copy(live, self._copies)
        self._live = live

    def bring_back(self) -> None:
        """Put all states back to where they were when they were saved."""
        _copy(self._copies, self._live)
        # A module may have put a tensor in the place of another.
        for (owner, name), tensor in zip(self._places, self._live, strict=True):
            setattr(owner, name, tensor)


def _tensors_of(state: Any) -> Iterable[tuple[Any, str]]:
    for name, value in vars(state).items():
        if isinstance(value, RingKVCache):
            yield value, "end_offset"
        elif isinstance(value, torch.Tensor) and name != "initial":
            yield state, name


def _copy(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> None:
    """Copy many tensors with one call for each of their types."""
    by_type: defaultdict[torch.dtype, tuple[list, list]] = defaultdict(lambda: ([], []))
    for source, target in zip(sources, targets, strict=True):
        sources_of_type, targets_of_type = by_type[source.dtype]
        sources_of_type.append(source)
        targets_of_type.append(target)
    for sources_of_type, targets_of_type in by_type.values():
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            targets_of_type, sources_of_type
        )
