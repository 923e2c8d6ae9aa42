"""Makes engines; only the chosen one's library is imported."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import SettingsError
from coserve_server.machine.cores import Cores
from coserve_server.settings import Precision

if TYPE_CHECKING:
    from coserve_server.engines.embedded.engine import EmbeddedEngine
    from coserve_server.engines.openvino.engine import OpenVinoEngine


def create_engine(
    options: EngineOptions, cores: Cores, ensembles: Mapping[str, Ensemble] | None = None
) -> "EmbeddedEngine":
    """Make an engine that runs members in this process, with these ensembles loaded.

    Raises:
        SettingsError: the library is not installed or cannot use the GPUs, or the processor does not support
            the precision.
        EngineError: a member cannot be loaded, or does not fit its ensemble.
    """
    if options.engine == "openvino":
        return _openvino()(options, cores, ensembles or {})
    from coserve_server.engines.onnxruntime.engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine(options, cores, ensembles or {})


def precisions(engine: str) -> list[Precision]:
    """Return the precisions in which the engine computes fp32 networks on this processor, fp32 first.

    Raises:
        SettingsError: the library is not installed.
    """
    return _openvino().precisions() if engine == "openvino" else ["fp32"]


def _openvino() -> "type[OpenVinoEngine]":
    try:
        from coserve_server.engines.openvino.engine import OpenVinoEngine
    except ImportError as error:
        fault = f"engine: openvino needs the extra openvino: pip install 'coserve[openvino]' ({error})"
        raise SettingsError([fault]) from error
    return OpenVinoEngine
