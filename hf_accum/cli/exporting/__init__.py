"""A run's model as ONNX, for programs without torch."""
