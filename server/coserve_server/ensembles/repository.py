"""Reads a model repository in NVIDIA Triton's layout from its files, for the embedded engine."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from coserve_server.ensembles.ensemble import Ensemble, Member, Stamp
from coserve_server.ensembles.triton_config import read_ensemble
from coserve_server.errors import RepositoryError

CONFIG = "config.pbtxt"


@dataclass(frozen=True)
class Contents:
    """What a model repository has.

    Attributes:
        versions: of each ensemble, those that its version policy serves, newest last, at least one.
        errors: what is wrong with a model, by its name; an ensemble is in one of the two.
    """

    versions: Mapping[str, tuple[Ensemble, ...]]
    errors: Mapping[str, str]


def read_repository(folder: Path) -> dict[str, Ensemble]:
    """Read the newest version of every ensemble of a model repository, by name.

    Raises:
        RepositoryError: there is none, or one is broken.
    """
    return {name: versions[-1] for name, versions in read_versions(folder).items()}


def read_versions(folder: Path) -> Mapping[str, tuple[Ensemble, ...]]:
    """Read every ensemble of a model repository: by name its versions, newest last.

    Raises:
        RepositoryError: there is none, or one is broken.
    """
    contents = read_contents(folder)
    for error in contents.errors.values():
        raise RepositoryError(error)
    return contents.versions


def read_contents(folder: Path) -> Contents:
    """Read every ensemble of a model repository, sound or not.

    Raises:
        RepositoryError: there is none.
    """
    if not folder.is_dir():
        raise RepositoryError(f"{folder} is not a folder")
    configs: dict[str, Any] = {}
    errors: dict[str, str] = {}
    versions: dict[str, tuple[Ensemble, ...]] = {}
    for name in sorted(map(os.path.basename, _folders(folder))):
        if not (folder / name / CONFIG).exists():
            continue
        with _collected(errors, name):
            configs[name] = _read_config(folder / name / CONFIG, name)
    for name, config in configs.items():
        if config.HasField("ensemble_scheduling"):
            with _collected(errors, name):
                versions[name] = _ensembles(folder, name, configs, errors)
    if not versions and not errors:
        raise RepositoryError(f"{folder} has no ensemble: no */{CONFIG} has an ensemble_scheduling")
    return Contents(versions, errors)


def read_stamps(folder: Path) -> frozenset[Stamp]:
    """Stamps of every model's configuration and the files of its versions; equal ones mean nothing changed.

    Raises:
        OSError: the folder cannot be read.
    """
    return frozenset(
        stamp for model in _folders(folder) for place in (model, *_folders(model)) for stamp in _stamps(place)
    )


def check_unchanged(ensemble: Ensemble) -> None:
    """Raise RepositoryError where the files of a member are not those that the ensemble was read with."""
    for member in ensemble.members:
        if member.model_path is not None and _stamps(member.model_path.parent) != member.stamps:
            raise RepositoryError(f"{member.model_path} changed while it was loaded")


@contextmanager
def _collected(errors: dict[str, str], name: str) -> Iterator[None]:
    """Keep an error for its model, and go on with the next."""
    try:
        yield
    except RepositoryError as error:
        errors[name] = str(error)
    except OSError as error:
        errors[name] = f"{name} cannot be read: {error}"


def _folders(folder: str | os.PathLike[str]) -> list[str]:
    """What an export builds is hidden until it is whole."""
    with os.scandir(folder) as entries:
        return [one.path for one in entries if one.is_dir() and not one.name.startswith(".")]


def _stamps(folder: str | os.PathLike[str]) -> tuple[Stamp, ...]:
    """Of the files in a folder; empty where it has just gone."""
    stamps = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.is_dir():
                    status = entry.stat()
                    stamps.append((entry.path, status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    except FileNotFoundError:
        return ()
    return tuple(sorted(stamps))


def _read_config(path: Path, name: str) -> Any:
    try:
        config = text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError, OSError) as error:
        raise RepositoryError(f"{path} cannot be read: {error}") from error
    if config.name not in ("", name):
        raise RepositoryError(f"{path}: name is {config.name!r}, its folder {name!r}")
    return config


def _ensembles(
    folder: Path, name: str, configs: Mapping[str, Any], errors: Mapping[str, str]
) -> tuple[Ensemble, ...]:
    """The versions of an ensemble that its policy serves."""
    source = folder / name / CONFIG
    served = _served(configs[name].version_policy, _versions(folder / name, source))
    if not served:
        raise RepositoryError(f"{source}: version_policy serves none of the versions there are")
    return tuple(_ensemble(folder, name, version, served[-1], configs, errors) for version in served)


def _served(policy: Any, versions: list[int]) -> list[int]:
    """What Triton's version policy makes of version folders."""
    if policy.HasField("all"):
        return versions
    if policy.HasField("specific"):
        return [version for version in versions if version in policy.specific.versions]
    return versions[-(policy.latest.num_versions or 1) :]


def _ensemble(
    folder: Path,
    name: str,
    version: int,
    newest: int,
    configs: Mapping[str, Any],
    errors: Mapping[str, str],
) -> Ensemble:
    """A version of an ensemble, from the configuration in its own folder where there is one."""
    source, own = folder / name / CONFIG, folder / name / str(version) / CONFIG
    if own.is_file():
        source, configs = own, {**configs, name: _read_config(own, name)}
    steps = configs[name].ensemble_scheduling.step
    if source != own and version != newest and any(step.model_version > 0 for step in steps):
        raise RepositoryError(
            f"{source}: its steps are those of version {newest}; version {version} needs {own}"
        )
    for step in steps:
        if step.model_name in errors:
            raise RepositoryError(errors[step.model_name])
    ensemble = read_ensemble(name, str(version), configs, str(source))
    members = tuple(
        _with_files(member, folder / member.name, configs[member.name], source) for member in ensemble.members
    )
    return replace(ensemble, members=members)


def _with_files(member: Member, folder: Path, config: Any, source: Path) -> Member:
    path = _model_path(folder, member, config, source)
    return replace(member, model_path=path, stamps=_stamps(path.parent))


def _model_path(folder: Path, member: Member, config: Any, source: Path) -> Path:
    """The file of the version the ensemble asks for, or of the highest that the policy allows."""
    if config.backend != "onnxruntime" and config.platform != "onnxruntime_onnx":
        raise RepositoryError(
            f"{source}: step {member.name!r}: backend must be 'onnxruntime', not {config.backend!r}"
        )
    filename = str(config.default_model_filename) or "model.onnx"
    if Path(filename).name != filename:
        raise RepositoryError(f"{source}: step {member.name!r}: {filename!r} is no name of a file")
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


def _versions(folder: Path, source: Path) -> list[int]:
    """Numbers of a model's version folders, ascending, at least one."""
    found = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())
    if not found:
        raise RepositoryError(f"{source}: {folder} has no version folder, such as {folder / '1'}")
    return found
