"""ONNX graphs of a checkpoint, without weights: those stay in moshi's own files.

    python -m training.onnx_graphs FOLDER

Writes ``encoder.onnx``, ``temporal.onnx``, ``depformer.onnx`` and ``decoder.onnx`` beside the
weights. Every weight is external data, a stretch of ``model.safetensors`` or ``mimi.safetensors``;
what is derived from weights (float32 from bfloat16, codebooks from sums and counts) is computed by
the graph, once, when ONNX Runtime loads it.
"""

from training.onnx_graphs.export import write_graphs

__all__ = ["write_graphs"]
