"""The `coserve` command: one thin module per verb."""

import os

# ONNX Runtime's official Linux builds have sent usage data since 1.29; it reads this variable on import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
