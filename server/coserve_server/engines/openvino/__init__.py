"""Runs every member in this process: one compiled OpenVINO model and, where cores allow, one thread each."""

from coserve_server.engines.openvino.engine import OpenVinoEngine

__all__ = ["OpenVinoEngine"]
