"""Which engine runs members in this process; only the chosen one's library is imported."""

from dataclasses import replace

from coserve_server.cores import Cores
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.errors import SettingsError
from coserve_server.settings import Settings


def embedded_engine(settings: Settings, cores: Cores) -> EmbeddedEngine:
    """The engine that the settings name, with nothing loaded.

    Raises:
        SettingsError: its library is not installed.
    """
    threads, batch = settings.member_threads, settings.max_batch_size
    if not settings.pin_members:
        cores = replace(cores, ids=None)
    if settings.engine == "onnxruntime":
        from coserve_server.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine({}, cores, threads, batch)
    try:
        from coserve_server.engines.openvino import OpenVinoEngine
    except ImportError as error:
        fault = f"engine: openvino needs the extra openvino: pip install 'coserve[openvino]' ({error})"
        raise SettingsError([fault]) from error
    return OpenVinoEngine({}, cores, threads, batch, settings.openvino_cache)
