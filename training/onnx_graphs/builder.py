"""Building a graph: nodes by their operators, weights by their places in a safetensors file."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 23
IR_VERSION = 10  # ONNX Runtime 1.24 takes it

SAFETENSORS_TYPES = {"F32": TensorProto.FLOAT, "BF16": TensorProto.BFLOAT16}
TYPES = {"float": TensorProto.FLOAT, "int64": TensorProto.INT64}

Dim = int | str


class WeightFile:
    """A safetensors file, read as far as its header."""

    def __init__(self, path: Path):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = file.read(length)
        self.name = path.name
        self.header_hash = hashlib.sha256(header).hexdigest()
        self._begin = 8 + length
        self._entries: dict[str, dict[str, Any]] = json.loads(header)

    def shape(self, name: str) -> list[int]:
        """Shape of a tensor."""
        return self._entries[name]["shape"]

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._entries

    def tensor(self, name: str) -> TensorProto:
        """A tensor whose data stay where they are, in this file."""
        entry = self._entries[name]
        begin, end = entry["data_offsets"]
        tensor = TensorProto(
            name=name,
            dims=entry["shape"],
            data_type=SAFETENSORS_TYPES[entry["dtype"]],
            data_location=TensorProto.EXTERNAL,
        )
        place = {"location": self.name, "offset": self._begin + begin, "length": end - begin}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor


class GraphBuilder:
    """Collects the nodes of one graph.

    Values are known by their names. What depends on weights alone (casts, transposes, products) is
    written as nodes too: ONNX Runtime folds it into constants when it loads the graph.
    """

    def __init__(self, name: str, weights: WeightFile):
        self._name = name
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._as_float: dict[str, str] = {}

    def input(self, name: str, kind: str, shape: Sequence[Dim]) -> str:
        """Declare an input; ``kind`` is ``float`` or ``int64``."""
        self._inputs.append(helper.make_tensor_value_info(name, TYPES[kind], list(shape)))
        return name

    def output(self, name: str, value: str, kind: str, shape: Sequence[Dim]) -> None:
        """Declare an output of the graph."""
        self._nodes.append(helper.make_node("Identity", [value], [name]))
        self._outputs.append(helper.make_tensor_value_info(name, TYPES[kind], list(shape)))

    def shape(self, name: str) -> list[int]:
        """Shape of a weight."""
        return self._weights.shape(name)

    def has(self, name: str) -> bool:
        """Whether there is a weight of this name."""
        return self._weights.has(name)

    def weight(self, name: str) -> str:
        """A weight as float32, whatever it is stored as."""
        if name not in self._as_float:
            tensor = self._weights.tensor(name)
            self._initializers[name] = tensor
            is_float = tensor.data_type == TensorProto.FLOAT
            self._as_float[name] = (
                name if is_float else self.node("Cast", name, to=TensorProto.FLOAT)
            )
        return self._as_float[name]

    def constant(self, value: Any, dtype: type = np.int64) -> str:
        """A small constant, kept in the graph; equal ones are kept once."""
        array = np.array(value, dtype=dtype)
        key = f"{array.dtype}{list(array.shape)}"
        name = f"const.{key}.{hashlib.sha256(array.tobytes()).hexdigest()[:12]}"
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def scalar(self, value: float) -> str:
        """A float constant without dimensions."""
        return self.constant(value, np.float32)

    def node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        return self.nodes(operator, *inputs, outputs=1, **attributes)[0]

    def nodes(self, operator: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs and return their names."""
        number = len(self._nodes)
        names = [f"{operator}.{number}.{index}" for index in range(outputs)]
        self._nodes.append(
            helper.make_node(operator, list(inputs), names, f"{operator}.{number}", **attributes)
        )
        return names

    def first_node(self, operator: str, *inputs: str, output: str, **attributes: Any) -> None:
        """Add a node before all others, whose output they may have used already."""
        self._nodes.insert(0, helper.make_node(operator, list(inputs), [output], **attributes))

    def reshape(self, value: str, *shape: int) -> str:
        """Reshape; 0 keeps a dimension, -1 is what is left."""
        return self.node("Reshape", value, self.constant(shape))

    def transpose(self, value: str, *permutation: int) -> str:
        """Permute dimensions."""
        return self.node("Transpose", value, perm=list(permutation))

    def concat(self, values: Sequence[str], axis: int) -> str:
        """Concatenate; a single value stays as it is."""
        return values[0] if len(values) == 1 else self.node("Concat", *values, axis=axis)

    def split(self, value: str, sizes: Sequence[int], axis: int) -> list[str]:
        """Split into pieces of these sizes."""
        if len(sizes) == 1:
            return [value]
        return self.nodes("Split", value, self.constant(sizes), outputs=len(sizes), axis=axis)

    def slice(self, value: str, begin: int, end: int, axis: int) -> str:
        """Cut a stretch out of one dimension."""
        return self.node("Slice", value, *(self.constant([at]) for at in (begin, end, axis)))

    def linear(self, value: str, name: str, *, scale_first: tuple[int, float] | None = None) -> str:
        """Multiply with a weight of shape ``[out, in]``.

        Args:
            value: Shape ``[..., in]``.
            name: The weight.
            scale_first: Multiply the first so many outputs with a factor.
        """
        weight = self.weight(name)
        if scale_first is not None:
            count, factor = scale_first
            factors = np.ones((self.shape(name)[0], 1))
            factors[:count] = factor
            weight = self.node("Mul", weight, self.constant(factors, np.float32))
        return self.node("MatMul", value, self.transpose(weight, 1, 0))

    def save(self, path: Path) -> None:
        """Check the graph and write it, to where the weights are.

        The hash of the weights' header goes with it: offsets into another file would be nonsense.
        """
        graph = helper.make_graph(
            self._nodes,
            self._name,
            self._inputs,
            self._outputs,
            list(self._initializers.values()),
        )
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        helper.set_model_props(
            model, {"weights": self._weights.name, "weights_header": self._weights.header_hash}
        )
        path.write_bytes(model.SerializeToString())
        onnx.checker.check_model(str(path), full_check=True)
