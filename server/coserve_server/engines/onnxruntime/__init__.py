"""Members as ONNX Runtime sessions, on cores or GPUs."""
