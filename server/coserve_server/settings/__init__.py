"""The server's settings: a module per subject, and where they are read from."""

from coserve_server.settings.early_stop import EarlyStop
from coserve_server.settings.engine import GpuPrecision, Precision
from coserve_server.settings.load import load_settings
from coserve_server.settings.settings import Settings

__all__ = ["EarlyStop", "GpuPrecision", "Precision", "Settings", "load_settings"]
