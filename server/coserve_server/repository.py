"""Reads a model repository in NVIDIA Triton's layout from its files, for the embedded engine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from coserve_server.ensembles import Ensemble, Member, read_ensemble
from coserve_server.errors import RepositoryError

CONFIG = "config.pbtxt"


def read_repository(folder: Path) -> dict[str, Ensemble]:
    """Read every ensemble of a model repository, by name.

    Raises:
        RepositoryError: there is none, or one is broken.
    """
    if not folder.is_dir():
        raise RepositoryError(f"{folder} is not a folder")
    names = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    configs = {name: _read_config(folder, name) for name in names}
    ensembles = [name for name, config in configs.items() if config.HasField("ensemble_scheduling")]
    if not ensembles:
        raise RepositoryError(f"{folder} has no ensemble: no */{CONFIG} has an ensemble_scheduling")
    return {name: _ensemble(folder, name, configs) for name in ensembles}


def _read_config(folder: Path, name: str) -> Any:
    path = folder / name / CONFIG
    try:
        config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError, OSError) as error:
        raise RepositoryError(f"{path} cannot be read: {error}") from error
    if config.name not in ("", name):
        raise RepositoryError(f"{path}: name is {config.name!r}, its folder {name!r}")
    return config


def _ensemble(folder: Path, name: str, configs: dict[str, Any]) -> Ensemble:
    source = str(folder / name / CONFIG)
    version = str(_versions(folder / name, source)[-1])
    ensemble = read_ensemble(name, version, configs, source)
    members = [
        replace(member, model_path=_model_path(folder / member.name, member, configs[member.name], source))
        for member in ensemble.members
    ]
    return replace(ensemble, members=tuple(members))


def _model_path(folder: Path, member: Member, config: Any, source: str) -> Path:
    """The file of the version the ensemble asks for, or of the highest that the policy allows."""
    if config.backend != "onnxruntime" and config.platform != "onnxruntime_onnx":
        raise RepositoryError(
            f"{source}: step {member.name!r}: backend must be 'onnxruntime', not {config.backend!r}"
        )
    filename = str(config.default_model_filename) or "model.onnx"
    versions = _versions(folder, source)
    if member.version is not None:
        versions = [version for version in versions if version == member.version]
    elif config.version_policy.HasField("specific"):
        versions = [version for version in versions if version in config.version_policy.specific.versions]
    files = [folder / str(version) / filename for version in versions]
    present = [file for file in files if file.is_file()]
    if not present:
        raise RepositoryError(
            f"{source}: step {member.name!r}: no version folder of it has the wanted {filename}"
        )
    return present[-1]


def _versions(folder: Path, source: str) -> list[int]:
    """Numbers of a model's version folders, ascending, at least one."""
    found = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())
    if not found:
        raise RepositoryError(f"{source}: {folder} has no version folder, such as {folder / '1'}")
    return found
