"""Read a model repository in NVIDIA Triton's layout, for the embedded engines."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.ensembles.files import exists, find_special_file, list_folders, stamp_files
from coserve_server.ensembles.triton_config import read_ensemble
from coserve_server.errors import RepositoryError
from coserve_server.files import check_regular, describe, printable, read_text

CONFIG = "config.pbtxt"
MAX_CONFIG_BYTES = 8 * 2**20
"""The labels of ImageNet-21k are half a megabyte."""
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
FILE_SYSTEMS_OWN = "lost+found"
"""Folder in the root of a volume that only root can read."""


@dataclass(frozen=True)
class RepositoryContents:
    """The ensembles of a model repository; each is either in `versions` or in `errors`.

    Attributes:
        versions: by name, the versions that the ensemble's version policy serves, newest last; at least one.
        errors: by name, what is wrong with a model, or with an entry that may be one.
        left_out: by name, why folders are not taken for models.
        parts: by an ensemble's name, those of all models that it is made of, as far as they can be read.
    """

    versions: Mapping[str, tuple[Ensemble, ...]]
    errors: Mapping[str, str]
    left_out: Mapping[str, str]
    parts: Mapping[str, frozenset[str]]


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
    models, faults = _list_models(folder)
    configs: dict[str, Any] = {}
    versions: dict[str, tuple[Ensemble, ...]] = {}
    errors: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for path, fault in faults:
        with _collect(errors, Path(path)):
            raise fault
    for model in map(Path, models):
        with _collect(errors, model):
            if reason := _why_no_model(model):
                left_out[printable(model.name)] = reason
            else:
                config = _read_config(model / CONFIG, model.name)
                # Triton completes such a configuration, but not an ensemble's.
                if config.ListFields():
                    configs[model.name] = config
                else:
                    left_out[printable(model.name)] = f"{CONFIG} is empty"
    for name, config in configs.items():
        if config.HasField("ensemble_scheduling") or config.platform == "ensemble":
            with _collect(errors, folder / name):
                versions[name] = _read_versions(folder, name, configs, errors)
    if not versions and not errors:
        raise RepositoryError(f"{folder} has no ensemble: no */{CONFIG} has an ensemble_scheduling")
    parts = {name: _list_parts(name, configs[name], versions.get(name, ())) for name in configs}
    return RepositoryContents(versions, errors, left_out, parts)


def check_unchanged(ensemble: Ensemble) -> None:
    """Raise RepositoryError if the files of a member changed since the ensemble was read."""
    for member in ensemble.members:
        if member.model_path is not None and stamp_files(member.model_path.parent) != member.stamps:
            raise RepositoryError(f"{member.model_path} changed while it was loaded")


def _list_models(folder: Path) -> tuple[list[str], list[tuple[str, OSError]]]:
    try:
        return list_folders(folder)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise RepositoryError(f"{folder} is not a folder") from error
    except OSError as error:
        raise RepositoryError(f"{folder} cannot be read: {describe(error)}") from error


def _list_parts(name: str, config: Any, versions: Sequence[Ensemble]) -> frozenset[str]:
    """Return the models that an ensemble, or another model, is made of, itself included."""
    steps = (step.model_name for step in config.ensemble_scheduling.step)
    # Older versions may have other members.
    return frozenset((name, *steps, *(member.name for one in versions for member in one.members)))


def _why_no_model(folder: Path) -> str | None:
    """Return why a folder is not taken for a model; None if it has a configuration, whatever that is."""
    try:
        return None if exists(folder / CONFIG) else f"no {CONFIG}"
    except PermissionError as error:
        if folder.name == FILE_SYSTEMS_OWN:
            return describe(error)
        raise


@contextmanager
def _collect(errors: dict[str, str], model: Path) -> Iterator[None]:
    """Keep the model's error, so that the next model is read."""
    try:
        yield
    except RepositoryError as error:
        errors[printable(model.name)] = printable(str(error))
    except OSError as error:
        errors[printable(model.name)] = printable(f"{model} cannot be read: {describe(error)}")


def _read_config(path: Path, name: str) -> Any:
    if _UNPRINTABLE.search(name):
        raise RepositoryError(f"{path}: the name of its folder is not printable UTF-8")
    try:
        config = text_format.Parse(read_text(path, MAX_CONFIG_BYTES), ModelConfig())
    except OSError as error:
        raise RepositoryError(f"{path} cannot be read: {describe(error)}") from error
    # The parser leaks errors of escapes and numbers.
    except (text_format.ParseError, ValueError) as error:
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
    if exists(own):
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
    if special := find_special_file(path.parent):
        raise RepositoryError(f"{source}: step {member.name!r}: {special} is not a regular file")
    return replace(member, model_path=path, stamps=stamp_files(path.parent))


def _find_model(folder: Path, member: Member, config: Any, source: Path) -> Path:
    """Find the file of the version that the ensemble requires, or of the newest that the policy allows."""
    if config.backend != "onnxruntime" and config.platform != "onnxruntime_onnx":
        raise RepositoryError(
            f"{source}: step {member.name!r}: backend must be 'onnxruntime', not {config.backend!r}"
        )
    filename = str(config.default_model_filename) or "model.onnx"
    if Path(filename).name != filename or _UNPRINTABLE.search(filename):
        raise RepositoryError(f"{source}: step {member.name!r}: {filename!r} is not a file name")
    versions = _list_versions(folder, source)
    if member.version is not None:
        versions = [version for version in versions if version == member.version]
    elif config.version_policy.HasField("specific"):
        versions = [version for version in versions if version in config.version_policy.specific.versions]
    for file in (folder / str(version) / filename for version in reversed(versions)):
        if exists(file):
            _check_file(file, f"{source}: step {member.name!r}")
            return file
    raise RepositoryError(
        f"{source}: step {member.name!r}: no version folder that the ensemble can use has {filename}"
    )


def _check_file(file: Path, place: str) -> None:
    try:
        check_regular(file)
    except OSError as error:
        raise RepositoryError(f"{place}: {file} cannot be read: {describe(error)}") from error


def _list_versions(folder: Path, source: Path) -> list[int]:
    """List the numbers of a model's version folders, ascending, at least one; Triton takes the same names."""
    names = [Path(path).name for path in list_folders(folder)[0]]
    versions = sorted(int(name) for name in names if _VERSION.fullmatch(name))
    if not versions:
        raise RepositoryError(f"{source}: {folder} has no version folder, such as {folder / '1'}")
    return versions
