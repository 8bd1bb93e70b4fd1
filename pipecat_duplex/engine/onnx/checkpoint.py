"""Checkpoints with graphs: their files, and that graphs and weights belong together."""

import hashlib
import os

import onnxruntime

from pipecat_duplex.engine.checkpoint import GRAPHS, CheckpointFiles, has_graphs, read_header
from pipecat_duplex.session import CheckpointError, one_line


def open_graphs(files: CheckpointFiles) -> dict[str, onnxruntime.InferenceSession]:
    """Load the graphs of a checkpoint, with their weights.

    Args:
        files: Where the checkpoint is.

    Raises:
        CheckpointError: A graph is missing, broken, or belongs to other weights.
    """
    if os.environ.get("ORT_DISABLE_TELEMETRY") == "1":
        onnxruntime.disable_telemetry_events()  # on Windows the variable has no effect
    folder = files.lm_weights.parent
    if not has_graphs(folder):
        raise CheckpointError(
            f"checkpoint {files.name} has no graphs for ONNX Runtime "
            f"({', '.join(f'{name}.onnx' for name in GRAPHS)}): run it on torch"
        )
    headers = {path.name: read_header(path) for path in (files.lm_weights, files.mimi_weights)}
    hashes = {name: hashlib.sha256(header).hexdigest() for name, header in headers.items()}
    sessions: dict[str, onnxruntime.InferenceSession] = {}
    for name in GRAPHS:
        path = folder / f"{name}.onnx"
        try:
            session = onnxruntime.InferenceSession(
                path, session_options(), providers=["CPUExecutionProvider"]
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
    _check_shapes(files, sessions)
    return sessions


def _check_shapes(
    files: CheckpointFiles, sessions: dict[str, onnxruntime.InferenceSession]
) -> None:
    """Check that ``config.json`` tells the sizes that the graphs have.

    Raises:
        CheckpointError: It does not, or a graph is another than its name says.
    """
    try:
        temporal, depformer = sessions["temporal"], sessions["depformer"]
        shapes = {
            info.name: info.shape for info in (*temporal.get_inputs(), *temporal.get_outputs())
        }
        noise = next(info.shape for info in depformer.get_inputs() if info.name == "noise")
        found = {
            "text_card": shapes["text_logits"][1],
            "card": noise[2],
            "context": shapes["keys.0"][2],
        }
    except (KeyError, IndexError, StopIteration) as error:
        raise CheckpointError(
            f"checkpoint {files.name}: its graphs are not those of a full-duplex Moshi: export them"
        ) from error
    for key, size in found.items():
        if files.config.get(key) != size:
            raise CheckpointError(
                f"checkpoint {files.name}: {key} in config.json is {files.config.get(key)}, "
                f"and its graphs have {size}"
            )


def session_options() -> onnxruntime.SessionOptions:
    """Return how every graph here is run."""
    options = onnxruntime.SessionOptions()
    # The rows of a step are shared out among threads as a whole (see model.py), which leaves
    # nothing to wait for within a graph.
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    # Denormals, which silence is full of, are very slow.
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return options
