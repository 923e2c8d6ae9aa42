"""Writing an ensemble's folders into a Triton model repository: all of them or none."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from coserve_export.ensemble import Description, Member
from coserve_export.errors import RepositoryError
from coserve_export.mean_graph import mean_graph
from coserve_export.moves import move_all, staging_folder
from coserve_export.triton_config import ensemble_config, mean_config, member_config, to_text

CONFIG, FIRST_VERSION = "config.pbtxt", 1


def check_free(repository: Path, name: str, overwrite: bool) -> None:
    """Raise RepositoryError where the ensemble cannot be written, before time is spent on it."""
    if repository.exists() and not repository.is_dir():
        raise RepositoryError(f"{repository} is not a folder")
    existing = _folders_of(repository, name)
    if existing and not overwrite:
        raise RepositoryError(f"{repository} already has {', '.join(existing)}; --overwrite replaces them")


def write_ensemble(
    repository: Path,
    description: Description,
    members: Sequence[Member],
    provenance: Mapping[str, object],
    overwrite: bool = False,
) -> int:
    """Write an ensemble's folders; a reader finds the ensemble only once everything it needs is in place.

    The folders are built beside the repository, since Triton takes every folder inside for a model. An
    ensemble that was there before is moved out first, and moved back where a step fails.

    Args:
        repository: made where it does not exist.
        provenance: the contract's JSON object.
        overwrite: replace an ensemble of the same name, and members of it that are left over.

    Returns:
        the version written.

    Raises:
        RepositoryError: where the ensemble exists and `overwrite` is false, or the folders cannot be written.
        DescriptionError: for provenance that JSON cannot hold.
    """
    check_free(repository, description.name, overwrite)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with staging_folder(repository) as staging:
            new, old = staging / "new", staging / "old"
            old.mkdir()
            _build(new, description, members, provenance)
            retired = _folders_of(repository, description.name) if overwrite else []
            moves = [(repository / name, old / name) for name in retired]
            placed = [*description.member_names, description.mean_name, description.name]
            moves += [(new / name, repository / name) for name in placed]
            move_all(moves, staging)
    except OSError as error:
        raise RepositoryError(f"cannot write {description.name} to {repository}: {error}") from error
    return FIRST_VERSION


def _folders_of(repository: Path, name: str) -> list[str]:
    """Folders that an ensemble of that name has, the ensemble's own first."""
    pattern = re.compile(rf"{re.escape(name)}(_member\d+|_mean)?")
    if not repository.is_dir():
        return []
    return sorted(path.name for path in repository.iterdir() if pattern.fullmatch(path.name))


def _build(
    root: Path, description: Description, members: Sequence[Member], provenance: Mapping[str, object]
) -> None:
    build_version(root, description, members, FIRST_VERSION)
    configs = [member_config(description, index, member) for index, member in enumerate(members)]
    configs += [mean_config(description), ensemble_config(description, members, provenance, FIRST_VERSION)]
    for config in configs:
        (root / config.name / CONFIG).write_text(to_text(config), "utf-8")
    labels = "".join(f"{label}\n" for label in description.labels)
    (root / description.name / "labels.txt").write_text(labels, "utf-8")


def build_version(root: Path, description: Description, members: Sequence[Member], version: int) -> None:
    """Write a version folder of each of the ensemble's models, below `root`."""
    graph = mean_graph(len(members), len(description.labels), description.weights)
    models = [*(member.model for member in members), graph.SerializeToString()]
    for name, model in zip([*description.member_names, description.mean_name], models, strict=True):
        folder = root / name / str(version)
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(model)
    ensemble = root / description.name / str(version)
    ensemble.mkdir(parents=True)
    # Git drops empty folders, and Triton wants this one; it ignores the file.
    (ensemble / ".keep").touch()
