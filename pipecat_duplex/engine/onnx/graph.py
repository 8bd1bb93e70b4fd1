"""One graph with the memory that goes in and out of it: nothing is copied on the way."""

from collections.abc import Mapping

import numpy as np
import onnxruntime

TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}

MAX_BINDINGS = 256


class Graph:
    """Runs a graph on rows of arrays that stay where they are.

    The first dimension of an input is ``m``, the running conversations, ``n``, a stretch of slots,
    or fixed. Arrays over ``m`` are this object's own, one row for each conversation that may run.
    Those over ``n`` are the slots' memories, shared with others.
    """

    def __init__(
        self,
        session: onnxruntime.InferenceSession,
        rows: int,
        memories: Mapping[str, np.ndarray] | None = None,
        steps: int = 1,
    ):
        """Initialize with arrays of zeros.

        Args:
            session: The graph.
            rows: The most conversations in a run.
            memories: Inputs over all slots, by name.
            steps: How many steps a run takes at once, where a graph can take several.
        """
        self._session = session
        self._memories = dict(memories or {})
        self._lengths = {"m": rows, "n": rows, "T": steps}
        self._bindings: dict[tuple[int, int, int], onnxruntime.IOBinding] = {}
        self.inputs = {
            info.name: self._allocate(info)
            for info in session.get_inputs()
            if info.name not in self._memories
        }
        self.outputs = {info.name: self._allocate(info) for info in session.get_outputs()}

    def run(self, count: int, begin: int = 0, end: int = 0) -> None:
        """Run for the first rows of the inputs.

        Args:
            count: Running conversations, ``m``.
            begin: First slot of the stretch ``n``.
            end: Behind its last slot.
        """
        key = (count, begin, end)
        binding = self._bindings.get(key)
        if binding is None:
            if len(self._bindings) >= MAX_BINDINGS:
                self._bindings.clear()
            binding = self._bindings[key] = self._bind(count, begin, end)
        self._session.run_with_iobinding(binding)

    def _bind(self, count: int, begin: int, end: int) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        lengths = {"m": count, "n": end - begin}
        for info in self._session.get_inputs():
            memory = self._memories.get(info.name)
            array = self.inputs[info.name] if memory is None else memory[begin:end]
            array = array[: lengths.get(info.shape[0], len(array))]
            binding.bind_input(
                info.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data
            )
        for info in self._session.get_outputs():
            array = self.outputs[info.name][:count]
            binding.bind_output(
                info.name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data
            )
        return binding

    def _allocate(self, info: onnxruntime.NodeArg) -> np.ndarray:
        shape = [
            self._lengths[length] if isinstance(length, str) else length for length in info.shape
        ]
        return np.zeros(shape, TYPES[info.type])
