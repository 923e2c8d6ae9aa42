"""Writing ensembles of ONNX networks into a Triton model repository, checked before anything is written."""

import os

# ONNX Runtime's official builds for Linux send usage data since 1.29; it reads this when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
