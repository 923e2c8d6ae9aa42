"""Runs every member in this process: one compiled OpenVINO model and, where cores allow, one thread each."""

import sys

# OpenVINO reports its import to a statistics service with this module, and without it goes on silently.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

from coserve_server.engines.openvino.engine import OpenVinoEngine  # noqa: E402

__all__ = ["OpenVinoEngine"]
