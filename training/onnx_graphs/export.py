"""Writing the graphs of a checkpoint."""

import json
from pathlib import Path

from training.checkpoint import CONFIG, LM_WEIGHTS, MIMI_CONFIG, MIMI_WEIGHTS
from training.onnx_graphs.builder import WeightFile
from training.onnx_graphs.codec import build_decoder, build_encoder
from training.onnx_graphs.language import build_depformer, build_temporal


def write_graphs(folder: Path) -> None:
    """Write the four graphs of a checkpoint into its folder.

    Args:
        folder: With configurations and weights.
    """
    language = json.loads((folder / CONFIG).read_text())
    codec = json.loads((folder / MIMI_CONFIG).read_text())
    lm_weights, mimi_weights = WeightFile(folder / LM_WEIGHTS), WeightFile(folder / MIMI_WEIGHTS)
    graphs = {
        "encoder": build_encoder(mimi_weights, codec),
        "temporal": build_temporal(lm_weights, language),
        "depformer": build_depformer(lm_weights, language),
        "decoder": build_decoder(mimi_weights, codec),
    }
    for name, graph in graphs.items():
        graph.save(folder / f"{name}.onnx")
