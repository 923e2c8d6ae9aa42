"""Read a model repository in NVIDIA Triton's layout, for the embedded engines."""

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
class RepositoryContents:
    """The ensembles of a model repository; each is either in `versions` or in `errors`.

    Attributes:
        versions: by name, the versions that the ensemble's version policy serves, newest last; at least one.
        errors: by name, what is wrong with a model.
    """

    versions: Mapping[str, tuple[Ensemble, ...]]
    errors: Mapping[str, str]


def read_repository(folder: Path) -> dict[str, Ensemble]:
    """Read the newest version of every ensemble of a model repository, by name.

    Raises:
        RepositoryError: there is no ensemble, or one is broken.
    """
    return {name: versions[-1] for name, versions in read_versions(folder).items()}


def read_versions(folder: Path) -> Mapping[str, tuple[Ensemble, ...]]:
    """Read the versions of every ensemble of a model repository, by name, newest last.

    Raises:
        RepositoryError: there is no ensemble, or one is broken.
    """
    contents = read_contents(folder)
    for error in contents.errors.values():
        raise RepositoryError(error)
    return contents.versions


def read_contents(folder: Path) -> RepositoryContents:
    """Read every ensemble of a model repository, and collect the errors of broken ones.

    Raises:
        RepositoryError: the folder does not exist, or has no ensemble.
    """
    if not folder.is_dir():
        raise RepositoryError(f"{folder} is not a folder")
    configs: dict[str, Any] = {}
    errors: dict[str, str] = {}
    versions: dict[str, tuple[Ensemble, ...]] = {}
    for name in sorted(map(os.path.basename, _list_folders(folder))):
        if not (folder / name / CONFIG).exists():
            continue
        with _collect(errors, name):
            configs[name] = _read_config(folder / name / CONFIG, name)
    for name, config in configs.items():
        if config.HasField("ensemble_scheduling"):
            with _collect(errors, name):
                versions[name] = _read_versions(folder, name, configs, errors)
    if not versions and not errors:
        raise RepositoryError(f"{folder} has no ensemble: no */{CONFIG} has an ensemble_scheduling")
    return RepositoryContents(versions, errors)


def read_stamps(folder: Path) -> frozenset[Stamp]:
    """Read the stamps of all configurations and version files; equal stamps mean that nothing changed.

    Raises:
        OSError: the folder cannot be read.
    """
    return frozenset(
        stamp
        for model in _list_folders(folder)
        for place in (model, *_list_folders(model))
        for stamp in _stamp_files(place)
    )


def check_unchanged(ensemble: Ensemble) -> None:
    """Raise RepositoryError if the files of a member changed since the ensemble was read."""
    for member in ensemble.members:
        if member.model_path is not None and _stamp_files(member.model_path.parent) != member.stamps:
            raise RepositoryError(f"{member.model_path} changed while it was loaded")


@contextmanager
def _collect(errors: dict[str, str], name: str) -> Iterator[None]:
    """Keep the model's error, so that the next model is read."""
    try:
        yield
    except RepositoryError as error:
        errors[name] = str(error)
    except OSError as error:
        errors[name] = f"{name} cannot be read: {error}"


def _list_folders(folder: str | os.PathLike[str]) -> list[str]:
    """List visible folders; an export is hidden until it is complete."""
    with os.scandir(folder) as entries:
        return [one.path for one in entries if one.is_dir() and not one.name.startswith(".")]


def _stamp_files(folder: str | os.PathLike[str]) -> tuple[Stamp, ...]:
    """Return the stamps of the files in a folder, or none if the folder has just been removed."""
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


def _read_versions(
    folder: Path, name: str, configs: Mapping[str, Any], errors: Mapping[str, str]
) -> tuple[Ensemble, ...]:
    """Read the versions of an ensemble that its policy serves."""
    source = folder / name / CONFIG
    served = _apply_policy(configs[name].version_policy, _list_versions(folder / name, source))
    if not served:
        raise RepositoryError(f"{source}: version_policy serves none of the existing versions")
    return tuple(_read_version(folder, name, version, served[-1], configs, errors) for version in served)


def _apply_policy(policy: Any, versions: list[int]) -> list[int]:
    """Select the versions that Triton's version policy serves."""
    if policy.HasField("all"):
        return versions
    if policy.HasField("specific"):
        return [version for version in versions if version in policy.specific.versions]
    return versions[-(policy.latest.num_versions or 1) :]


def _read_version(
    folder: Path,
    name: str,
    version: int,
    newest: int,
    configs: Mapping[str, Any],
    errors: Mapping[str, str],
) -> Ensemble:
    """Read a version of an ensemble; a configuration in the version's own folder takes precedence."""
    source = folder / name / CONFIG
    own = folder / name / str(version) / CONFIG
    if own.is_file():
        source = own
        configs = {**configs, name: _read_config(own, name)}
    steps = configs[name].ensemble_scheduling.step
    if source != own and version != newest and any(step.model_version > 0 for step in steps):
        raise RepositoryError(f"{source}: its steps are for version {newest}; version {version} needs {own}")
    for step in steps:
        if step.model_name in errors:
            raise RepositoryError(errors[step.model_name])
    ensemble = read_ensemble(name, str(version), configs, str(source))
    members = tuple(
        _find_files(member, folder / member.name, configs[member.name], source) for member in ensemble.members
    )
    return replace(ensemble, members=members)


def _find_files(member: Member, folder: Path, config: Any, source: Path) -> Member:
    path = _find_model(folder, member, config, source)
    return replace(member, model_path=path, stamps=_stamp_files(path.parent))


def _find_model(folder: Path, member: Member, config: Any, source: Path) -> Path:
    """Find the file of the version that the ensemble requires, or of the newest that the policy allows."""
    if config.backend != "onnxruntime" and config.platform != "onnxruntime_onnx":
        raise RepositoryError(
            f"{source}: step {member.name!r}: backend must be 'onnxruntime', not {config.backend!r}"
        )
    filename = str(config.default_model_filename) or "model.onnx"
    if Path(filename).name != filename:
        raise RepositoryError(f"{source}: step {member.name!r}: {filename!r} is not a file name")
    versions = _list_versions(folder, source)
    if member.version is not None:
        versions = [version for version in versions if version == member.version]
    elif config.version_policy.HasField("specific"):
        versions = [version for version in versions if version in config.version_policy.specific.versions]
    files = [folder / str(version) / filename for version in versions]
    present = [file for file in files if file.is_file()]
    if not present:
        raise RepositoryError(
            f"{source}: step {member.name!r}: no version folder that the ensemble can use has {filename}"
        )
    return present[-1]


def _list_versions(folder: Path, source: Path) -> list[int]:
    """List the numbers of a model's version folders, ascending, at least one."""
    versions = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())
    if not versions:
        raise RepositoryError(f"{source}: {folder} has no version folder, such as {folder / '1'}")
    return versions
