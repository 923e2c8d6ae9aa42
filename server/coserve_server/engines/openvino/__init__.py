"""Members as compiled OpenVINO models, on cores."""

import sys

# OpenVINO reports its import to a statistics service with this module; without it, it silently does not.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
