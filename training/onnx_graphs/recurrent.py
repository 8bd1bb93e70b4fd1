"""The graph of a small recurrent network that hears users beside a model, with its weights.

Its layers are ``enter``, linear, two of GRU cells and ``leave``, linear. The graph takes a step of
log mel spectrum for ``n`` conversations and what their cells remember.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from pipecat_duplex.conversation.loudness import BANDS, FRAMES
from training.onnx_graphs.builder import IR_VERSION

_OPSET = 18
_LAYERS = 2


def write_network(weights: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a network's graph.

    Args:
        weights: float32, by torch's names. The width of the first layer says how many frames it
            takes at a time.
        path: of the file.
    """
    hidden, width = weights["enter.weight"].shape
    scores = len(weights["leave.bias"])
    constants = {
        "enter_weight": weights["enter.weight"].T,
        "enter_bias": weights["enter.bias"],
        "leave_weight": weights["leave.weight"].T,
        "leave_bias": weights["leave.bias"],
        "moments": np.array([-1, FRAMES * BANDS // width, width]),
        "first_axis": np.array([0]),
        "second_axis": np.array([1]),
    }
    nodes = [
        helper.make_node("Reshape", ["mels", "moments"], ["joined"]),
        helper.make_node("MatMul", ["joined", "enter_weight"], ["product"]),
        helper.make_node("Add", ["product", "enter_bias"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["entered"]),
        helper.make_node("Transpose", ["entered"], ["heard_0"], perm=[1, 0, 2]),
        helper.make_node("Split", ["states"], ["state_0", "state_1"], axis=0, num_outputs=_LAYERS),
    ]
    for layer in range(_LAYERS):
        constants |= _gru_weights(weights, layer)
        given = [f"{name}_{layer}" for name in ("heard", "inputs", "past", "biases")]
        told = [f"directions_{layer}", f"new_{layer}"]
        cells = {"hidden_size": hidden, "linear_before_reset": 1}  # as torch's cells
        nodes += [
            helper.make_node("GRU", [*given, "", f"state_{layer}"], told, **cells),
            helper.make_node("Squeeze", [told[0], "second_axis"], [f"heard_{layer + 1}"]),
        ]
    nodes += [
        helper.make_node("Concat", ["new_0", "new_1"], ["new_states"], axis=0),
        helper.make_node("Squeeze", ["new_1", "first_axis"], ["last"]),
        helper.make_node("MatMul", ["last", "leave_weight"], ["left"]),
        helper.make_node("Add", ["left", "leave_bias"], ["scores"]),
    ]
    states = [_LAYERS, "n", hidden]
    graph = helper.make_graph(
        nodes,
        path.stem,
        [_floats("mels", ["n", FRAMES, BANDS]), _floats("states", states)],
        [_floats("scores", ["n", scores]), _floats("new_states", states)],
        [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _gru_weights(weights: Mapping[str, np.ndarray], layer: int) -> dict[str, np.ndarray]:
    """A layer's weights: ONNX has the gate that keeps before the one that resets."""
    own = {name: weights[f"gru.{name}_l{layer}"] for name in ("weight_ih", "weight_hh")}
    biases = [_keep_first(weights[f"gru.{name}_l{layer}"]) for name in ("bias_ih", "bias_hh")]
    return {
        f"inputs_{layer}": _keep_first(own["weight_ih"])[None],
        f"past_{layer}": _keep_first(own["weight_hh"])[None],
        f"biases_{layer}": np.concatenate(biases)[None],
    }


def _keep_first(gates: np.ndarray) -> np.ndarray:
    reset, keep, new = np.split(gates, 3)
    return np.concatenate([keep, reset, new])


def _floats(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
