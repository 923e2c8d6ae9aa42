"""Runs every member in this process: one ONNX Runtime session and, where cores allow, one thread each."""

from coserve_server.engines.onnxruntime.engine import OnnxRuntimeEngine
from coserve_server.engines.onnxruntime.lanes import ThreadBudget
from coserve_server.engines.onnxruntime.sessions import create_session

__all__ = ["OnnxRuntimeEngine", "ThreadBudget", "create_session"]
