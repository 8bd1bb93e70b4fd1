"""Checkpoints with graphs: their files, and that graphs and weights belong together."""

import hashlib
import json
import math
from pathlib import Path

import onnxruntime

from pipecat_duplex.engine.checkpoint import GRAPHS, CheckpointFiles, has_graphs
from pipecat_duplex.session import CheckpointError, one_line


def open_graphs(files: CheckpointFiles) -> dict[str, onnxruntime.InferenceSession]:
    """Load the graphs of a checkpoint, with their weights.

    Args:
        files: Where the checkpoint is.

    Raises:
        CheckpointError: A graph is missing, broken, or belongs to other weights.
    """
    folder = files.lm_weights.parent
    if not has_graphs(folder):
        raise CheckpointError(
            f"checkpoint {files.name} has no graphs for ONNX Runtime "
            f"({', '.join(f'{name}.onnx' for name in GRAPHS)}): run it on torch"
        )
    headers = {path.name: _header(path) for path in (files.lm_weights, files.mimi_weights)}
    hashes = {name: hashlib.sha256(header).hexdigest() for name, header in headers.items()}
    sessions: dict[str, onnxruntime.InferenceSession] = {}
    for name in GRAPHS:
        path = folder / f"{name}.onnx"
        try:
            session = onnxruntime.InferenceSession(
                path, _options(), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime has a dozen kinds: all mean bad files
            raise CheckpointError(
                f"checkpoint {files.name} cannot be loaded: {path.name}: {one_line(error)}"
            ) from error
        made_for = session.get_modelmeta().custom_metadata_map
        if hashes.get(made_for.get("weights", "")) != made_for.get("weights_header"):
            raise CheckpointError(
                f"checkpoint {files.name}: {path.name} was made for other weights: "
                "export the graphs again"
            )
        sessions[name] = session
    return sessions


def count_parameters(weights: Path) -> int:
    """Count the numbers in a safetensors file."""
    entries = json.loads(_header(weights))
    return sum(
        math.prod(entry["shape"]) for name, entry in entries.items() if name != "__metadata__"
    )


def _header(weights: Path) -> bytes:
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(length)


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    # The rows of a step are shared out among threads as a whole (see model.py), which leaves
    # nothing to wait for within a graph.
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # Denormals, which silence is full of, are very slow.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return options
