"""Writing ensembles of ONNX networks into a Triton model repository, checked before anything is written."""
