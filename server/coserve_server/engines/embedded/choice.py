"""Which engine runs members in this process; only the chosen one's library is imported."""

from dataclasses import replace
from pathlib import Path

from coserve_server.cores import Cores
from coserve_server.engines.embedded.engine import EmbeddedEngine
from coserve_server.errors import SettingsError
from coserve_server.settings import Settings


def embedded_engine(settings: Settings, cores: Cores) -> EmbeddedEngine:
    """The engine that the settings name, with nothing loaded.

    Raises:
        SettingsError: its library is not installed.
    """
    return create_engine(
        settings.engine,
        cores,
        settings.member_threads,
        settings.pin_members,
        settings.max_batch_size,
        settings.openvino_cache,
    )


def create_engine(
    name: str,
    cores: Cores,
    threads: int | None = None,
    pinned: bool = True,
    max_batch_size: int | None = None,
    openvino_cache: Path | None = None,
) -> EmbeddedEngine:
    """The engine `onnxruntime` or `openvino`, with nothing loaded; the other arguments as the settings.

    Raises:
        SettingsError: its library is not installed.
    """
    if not pinned:
        cores = replace(cores, ids=None)
    if name == "onnxruntime":
        from coserve_server.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine({}, cores, threads, max_batch_size)
    try:
        from coserve_server.engines.openvino import OpenVinoEngine
    except ImportError as error:
        fault = f"engine: openvino needs the extra openvino: pip install 'coserve[openvino]' ({error})"
        raise SettingsError([fault]) from error
    return OpenVinoEngine({}, cores, threads, max_batch_size, openvino_cache)
