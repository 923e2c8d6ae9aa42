"""Adding a version to an ensemble that a repository already has.

The old version's files stay, and its configuration is kept in its version folder, where coserve reads it and
Triton reads nothing. The ensemble's steps name the version of their models, and its `config.pbtxt` is
replaced last: until then a reader finds all of the old version, from then on all of the new one.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from coserve_export.ensemble import Description, Member
from coserve_export.errors import RepositoryError, on_one_line
from coserve_export.moves import move_all, staging_folder
from coserve_export.repository import CONFIG, build_version
from coserve_export.triton_config import KEPT_VERSIONS, ensemble_config, mean_config, member_config, to_text


def check_extends(repository: Path, description: Description) -> None:
    """Raise RepositoryError where the repository has no such ensemble, before time is spent on networks."""
    ensemble = _read(repository, description.name)
    wanted = ensemble_config(description, [Member(b"")] * description.num_members, {}, 1)
    for key in ("labels", "preprocessing"):
        if _parameter(ensemble, key) != _parameter(wanted, key):
            raise _misfit(repository, description, f"it has other {key}")
    members = len(ensemble.ensemble_scheduling.step) - 1
    if members != description.num_members:
        raise _misfit(repository, description, f"it has {members} members, not {description.num_members}")


def write_version(
    repository: Path, description: Description, members: Sequence[Member], provenance: Mapping[str, object]
) -> int:
    """Add a version to an ensemble and have its steps run it.

    The models' configurations stay as they are, but for a `version_policy` that would serve one version only.

    Args:
        description: its `max_batch_size` and `deployment` do not count; the repository's do.
        provenance: the contract's JSON object; it takes the place of the old version's.

    Returns:
        the version written.

    Raises:
        RepositoryError: where there is no such ensemble, its labels, preprocessing or tensors differ, or
            files cannot be written; the old version is then as it was.
        DescriptionError: for provenance that JSON cannot hold.
    """
    check_extends(repository, description)
    name, models = description.name, [*description.member_names, description.mean_name]
    configs = {model: _read(repository, model) for model in models}
    _check_tensors(repository, description, members, configs)
    versions = {model: _versions(repository / model) for model in (*models, name)}
    version = max(number for found in versions.values() for number in found) + 1

    try:
        with staging_folder(repository) as staging:
            build_version(staging, description, members, version)
            moves: list[tuple[Path, Path]] = []
            ensemble = _read(repository, name)
            if _pin(ensemble, configs, versions):
                moves.append((_write(staging / "pinned.pbtxt", ensemble), repository / name / CONFIG))
            for old in versions[name][-1:]:
                own = repository / name / str(old) / CONFIG
                if not own.exists():
                    moves.append((_write(staging / "old.pbtxt", ensemble), own))
            running = {step.model_name: step.model_version for step in ensemble.ensemble_scheduling.step}
            for model, config in configs.items():
                # After going back, versions newer than the one that runs may still be there.
                newer = [number for number in versions[model] if number > running.get(model, version)]
                if _keep_serving(config, version, len(newer) + KEPT_VERSIONS):
                    moves.append((_write(staging / f"{model}.pbtxt", config), repository / model / CONFIG))
            moves += [
                (staging / model / str(version), repository / model / str(version))
                for model in (*models, name)
            ]
            _extend(ensemble, ensemble_config(description, members, provenance, version))
            moves.append((_write(staging / "extended.pbtxt", ensemble), repository / name / CONFIG))
            move_all(moves, staging)
    except OSError as error:
        raise RepositoryError(f"cannot write version {version} of {name}: {error}") from error
    return version


def _pin(
    ensemble: ModelConfig, configs: Mapping[str, ModelConfig], versions: Mapping[str, Sequence[int]]
) -> bool:
    """Have steps that run the newest version name the one they run now; whether there were such steps."""
    unpinned = [step for step in ensemble.ensemble_scheduling.step if step.model_version < 1]
    for step in unpinned:
        policy, served = configs[step.model_name].version_policy, versions[step.model_name]
        if policy.HasField("specific"):
            served = [version for version in served if version in policy.specific.versions]
        step.model_version = max(served)
    return bool(unpinned)


def _extend(ensemble: ModelConfig, wanted: ModelConfig) -> None:
    """Take over the new version's steps and parameters; the ensemble's other fields stay."""
    for field in ("parameters", "ensemble_scheduling"):
        ensemble.ClearField(field)
    ensemble.MergeFrom(
        ModelConfig(parameters=wanted.parameters, ensemble_scheduling=wanted.ensemble_scheduling)
    )


def _check_tensors(
    repository: Path, description: Description, members: Sequence[Member], configs: Mapping[str, ModelConfig]
) -> None:
    """Versions of a model share its configuration, and so the names and sizes of its tensors."""
    wanted = [member_config(description, index, member) for index, member in enumerate(members)]
    for config in (*wanted, mean_config(description)):
        for field in ("input", "output"):
            if list(getattr(configs[config.name], field)) != list(getattr(config, field)):
                raise _misfit(repository, description, f"the {field} of {config.name} is another")


def _keep_serving(config: ModelConfig, version: int, latest: int) -> bool:
    """Have a model's `version_policy` serve this version, or so many of the latest; whether it did not."""
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


def _read(repository: Path, model: str) -> ModelConfig:
    path = repository / model / CONFIG
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


def _versions(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def _write(path: Path, config: ModelConfig) -> Path:
    path.write_text(to_text(config), "utf-8")
    return path


def _misfit(repository: Path, description: Description, reason: str) -> RepositoryError:
    return RepositoryError(
        f"{repository / description.name} cannot take this as a new version: {reason}; "
        "choose another --name, or --overwrite"
    )
