"""The model on ONNX Runtime."""
