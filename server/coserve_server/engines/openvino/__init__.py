"""Members as compiled OpenVINO models, on cores."""

import sys

# OpenVINO reports its import to a statistics service through this module; without it, nothing is sent.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
