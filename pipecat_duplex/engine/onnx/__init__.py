"""The model on ONNX Runtime, for checkpoints that bring graphs. Part of the base install."""

from pipecat_duplex.engine.onnx.model import load_model

__all__ = ["load_model"]
