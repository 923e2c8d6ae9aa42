"""Adding a version to an ensemble that is already in a repository.

The old version's files stay. Its configuration is copied into its version folder, where Coserve reads it and
Triton ignores it. The ensemble's steps name the version of their models, and its `config.pbtxt` is replaced
last: before that, readers see the complete old version; after it, the complete new one.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from coserve_export.deployment import runs_on_gpus
from coserve_export.ensemble import Description, Member
from coserve_export.errors import RepositoryError, on_one_line
from coserve_export.moves import locked, move_all, staging_folder
from coserve_export.repository import CONFIG_FILE, build_version, check_folder, translated
from coserve_export.triton_config import KEPT_VERSIONS, ensemble_config, mean_config, member_config, to_text


def check_can_extend(repository: Path, description: Description, int8: bool = False) -> None:
    """Raise RepositoryError if the repository has no ensemble to extend; call it before costly work.

    Args:
        repository: the model repository.
        description: the ensemble; its `max_batch_size` and `deployment` are ignored.
        int8: whether the new version's members are quantised, which GPUs do not run.
    """
    with translated(repository):
        check_folder(repository)
    ensemble = _read_config(repository, description.name)
    new = ensemble_config(description, [Member(b"")] * description.num_members, {}, 1)
    for key in ("labels", "preprocessing"):
        if _parameter(ensemble, key) != _parameter(new, key):
            raise _mismatch(repository, description, f"it has different {key}")
    members = len(ensemble.ensemble_scheduling.step) - 1
    if members != description.num_members:
        raise _mismatch(repository, description, f"it has {members} members, not {description.num_members}")
    if int8 and any(runs_on_gpus(_read_config(repository, name)) for name in description.member_names):
        raise _mismatch(repository, description, "it runs on GPUs, and int8 networks run on the CPU")


def write_version(
    repository: Path, description: Description, members: Sequence[Member], provenance: Mapping[str, object]
) -> int:
    """Add a version to an ensemble and make the ensemble run it.

    The models keep their configurations, except that `version_policy` is extended to serve the new version.

    Args:
        repository: the model repository.
        description: the ensemble; its `max_batch_size` and `deployment` are ignored.
        members: the new version's networks, in order.
        provenance: JSON object (docs/reference/model-repository.md); replaces the old version's.

    Returns:
        The version written.

    Raises:
        RepositoryError: there is no such ensemble, its labels, preprocessing or tensors differ, or files
            cannot be written; the old version is then unchanged.
        DescriptionError: the provenance cannot be written as JSON.
    """
    with translated(repository), locked(repository):
        return _write_version(repository, description, members, provenance)


def _write_version(
    repository: Path, description: Description, members: Sequence[Member], provenance: Mapping[str, object]
) -> int:
    check_can_extend(repository, description)
    name = description.name
    models = [*description.member_names, description.mean_name]
    configs = {model: _read_config(repository, model) for model in models}
    _check_tensors(repository, description, members, configs)
    versions = {model: _list_versions(repository / model) for model in (*models, name)}
    version = _next_version(repository, [*models, name])

    try:
        with staging_folder(repository) as staging:
            build_version(staging, description, members, version)
            moves: list[tuple[Path, Path]] = []
            ensemble = _read_config(repository, name)
            if _pin_steps(ensemble, configs, versions):
                moves.append(
                    (_write_config(staging / "pinned.pbtxt", ensemble), repository / name / CONFIG_FILE)
                )
            for old in versions[name][-1:]:
                copy = repository / name / str(old) / CONFIG_FILE
                if not copy.exists():
                    moves.append((_write_config(staging / "old.pbtxt", ensemble), copy))
            running = {step.model_name: step.model_version for step in ensemble.ensemble_scheduling.step}
            for model, config in configs.items():
                # After a rollback, versions newer than the running one may still exist.
                newer = [number for number in versions[model] if number > running.get(model, version)]
                if _extend_policy(config, version, len(newer) + KEPT_VERSIONS):
                    moves.append(
                        (_write_config(staging / f"{model}.pbtxt", config), repository / model / CONFIG_FILE)
                    )
            moves += [
                (staging / model / str(version), repository / model / str(version))
                for model in (*models, name)
            ]
            _switch_to(ensemble, ensemble_config(description, members, provenance, version))
            moves.append(
                (_write_config(staging / "extended.pbtxt", ensemble), repository / name / CONFIG_FILE)
            )
            move_all(moves, staging)
    except OSError as error:
        raise RepositoryError(f"cannot write version {version} of {name}: {error}") from error
    return version


def _pin_steps(
    ensemble: ModelConfig, configs: Mapping[str, ModelConfig], versions: Mapping[str, Sequence[int]]
) -> bool:
    """Make steps that run the newest version name it; return whether any step changed."""
    unpinned = [step for step in ensemble.ensemble_scheduling.step if step.model_version < 1]
    for step in unpinned:
        policy = configs[step.model_name].version_policy
        served = versions[step.model_name]
        if policy.HasField("specific"):
            served = [version for version in served if version in policy.specific.versions]
        if not served:
            raise RepositoryError(f"{step.model_name} has no version that its version_policy serves")
        step.model_version = max(served)
    return bool(unpinned)


def _switch_to(ensemble: ModelConfig, new: ModelConfig) -> None:
    """Replace the ensemble's steps and parameters with the new version's; keep its other fields."""
    for field in ("parameters", "ensemble_scheduling"):
        ensemble.ClearField(field)
    ensemble.MergeFrom(ModelConfig(parameters=new.parameters, ensemble_scheduling=new.ensemble_scheduling))


def _check_tensors(
    repository: Path, description: Description, members: Sequence[Member], configs: Mapping[str, ModelConfig]
) -> None:
    """Check tensor names and shapes, which all versions of a model share through its configuration."""
    new_configs = [member_config(description, index, member) for index, member in enumerate(members)]
    for config in (*new_configs, mean_config(description)):
        for field in ("input", "output"):
            if _tensors(configs[config.name], field) != _tensors(config, field):
                raise _mismatch(repository, description, f"the {field} of {config.name} differs")


def _tensors(config: ModelConfig, field: str) -> list[tuple[object, ...]]:
    """Return what must not change between versions; earlier exports left out the input's `format`."""
    return [(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in getattr(config, field)]


def _extend_policy(config: ModelConfig, version: int, latest: int) -> bool:
    """Make a model's `version_policy` serve a version, or enough of the latest; return whether it changed."""
    policy = config.version_policy
    if policy.HasField("all"):
        return False
    if policy.HasField("specific"):
        policy.specific.versions.append(version)
        return True
    if policy.latest.num_versions >= latest:
        return False
    policy.latest.num_versions = latest
    return True


def _read_config(repository: Path, model: str) -> ModelConfig:
    path = repository / model / CONFIG_FILE
    try:
        return text_format.Parse(path.read_text("utf-8"), ModelConfig())
    except FileNotFoundError as error:
        raise RepositoryError(f"there is no {path} to add a version to") from error
    except (text_format.ParseError, UnicodeDecodeError, OSError) as error:
        raise RepositoryError(f"{path} cannot be read: {on_one_line(error)}") from error


def _parameter(config: ModelConfig, key: str) -> object:
    try:
        return json.loads(config.parameters[key].string_value)
    except json.JSONDecodeError:
        return None


def _list_versions(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal() and path.is_dir())


def _next_version(repository: Path, models: Sequence[str]) -> int:
    """Return the version after all others; a file or a dangling link takes a number, too."""
    entries = (path.name for model in models for path in (repository / model).iterdir())
    return max((int(name) for name in entries if name.isdecimal()), default=0) + 1


def _write_config(path: Path, config: ModelConfig) -> Path:
    path.write_text(to_text(config), "utf-8")
    return path


def _mismatch(repository: Path, description: Description, reason: str) -> RepositoryError:
    return RepositoryError(
        f"{repository / description.name} cannot take this as a new version: {reason}; "
        "choose another --name, or use --overwrite"
    )
