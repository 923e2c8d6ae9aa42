"""Which engine runs members in this process, and how; only the chosen one's library is imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import SettingsError
from coserve_server.machine.cores import Cores
from coserve_server.settings import Precision, Settings

if TYPE_CHECKING:
    from coserve_server.engines.embedded.engine import EmbeddedEngine
    from coserve_server.engines.openvino import OpenVinoEngine


@dataclass(frozen=True)
class Choice:
    """The engine `onnxruntime` or `openvino`, and how it runs members; all as the settings have it."""

    engine: str = "onnxruntime"
    threads: int | None = None
    pinned: bool = True
    precision: Precision = "fp32"
    max_batch_size: int | None = None
    cache: Path | None = None
    gpus: tuple[int, ...] = ()
    cuda_graphs: tuple[int, ...] = ()
    pinned_host_memory: bool = False

    @classmethod
    def of(cls, settings: Settings) -> "Choice":
        """What the settings say."""
        return cls(
            settings.engine,
            settings.member_threads,
            settings.pin_members,
            settings.openvino_precision,
            settings.max_batch_size,
            settings.openvino_cache,
            settings.gpus,
            settings.cuda_graphs,
            settings.pinned_host_memory,
        )


def embedded_engine(settings: Settings, cores: Cores) -> "EmbeddedEngine":
    """The engine that the settings name, with nothing loaded.

    Raises:
        SettingsError: its library is not installed, or cannot use the GPUs, or the processor does not compute
            in its precision.
    """
    return create_engine(Choice.of(settings), cores, {})


def create_engine(choice: Choice, cores: Cores, ensembles: Mapping[str, Ensemble]) -> "EmbeddedEngine":
    """An engine with these ensembles loaded.

    Raises:
        SettingsError: as of `embedded_engine`.
        EngineError: a member cannot be loaded, or does not fit its ensemble.
    """
    if choice.engine == "openvino":
        return _openvino()(choice, cores, ensembles)
    from coserve_server.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(choice, cores, ensembles)


def precisions(engine: str) -> list[Precision]:
    """What the engine computes networks of fp32 in on this processor, fp32 first.

    Raises:
        SettingsError: its library is not installed.
    """
    return _openvino().precisions() if engine == "openvino" else ["fp32"]


def _openvino() -> "type[OpenVinoEngine]":
    try:
        from coserve_server.engines.openvino import OpenVinoEngine
    except ImportError as error:
        fault = f"engine: openvino needs the extra openvino: pip install 'coserve[openvino]' ({error})"
        raise SettingsError([fault]) from error
    return OpenVinoEngine
