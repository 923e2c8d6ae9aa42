"""Writing an ensemble's folders into a Triton model repository, all of them or none."""

import errno
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from coserve_export.ensemble import Description, Member
from coserve_export.errors import RepositoryError
from coserve_export.mean_graph import mean_graph
from coserve_export.moves import locked, move_all, staging_folder
from coserve_export.triton_config import ensemble_config, mean_config, member_config, to_text

CONFIG_FILE = "config.pbtxt"
FIRST_VERSION = 1
KEPT = "Keeps this folder where empty folders and files are dropped.\n"


def check_can_write(repository: Path, name: str, overwrite: bool) -> None:
    """Raise RepositoryError if an ensemble of that name cannot be written; call it before costly work."""
    with translated(repository):
        check_folder(repository)
        existing = _existing_folders(repository, name)
        foreign = [folder for folder in existing if not _is_replaceable(repository / folder)]
    if foreign:
        raise RepositoryError(
            f"{repository / foreign[0]} is no model, since it has no {CONFIG_FILE}, and is not replaced; "
            "move it away, or choose another --name"
        )
    if existing and not overwrite:
        raise RepositoryError(f"{repository} already has {', '.join(existing)}; --overwrite replaces them")


@contextmanager
def translated(repository: Path) -> Iterator[None]:
    """Turn errors of the file system into a RepositoryError that names the repository."""
    try:
        yield
    except OSError as error:
        raise RepositoryError(f"{repository} cannot be used: {error.strerror or error}") from error


def check_folder(repository: Path) -> None:
    """Raise RepositoryError or OSError unless the repository is, or can become, a writable folder."""
    if repository.is_symlink() and not repository.exists():
        raise RepositoryError(f"{repository} is a link that leads nowhere, to {repository.readlink()}")
    if repository.exists() and not repository.is_dir():
        raise RepositoryError(f"{repository} is not a folder")
    place = repository
    while not place.exists() and place != place.parent:
        place = place.parent
    if place.is_dir() and not os.access(place, os.W_OK | os.X_OK):
        raise RepositoryError(f"{repository} cannot be written: {place} is read-only for this user")


def write_ensemble(
    repository: Path,
    description: Description,
    members: Sequence[Member],
    provenance: Mapping[str, object],
    overwrite: bool = False,
) -> int:
    """Write an ensemble's folders, the ensemble's own last, so that readers never see an incomplete ensemble.

    The folders are built beside the repository, since Triton treats every folder inside as a model. An
    existing ensemble is moved out first, and moved back if a step fails.

    Args:
        repository: the model repository; created if it does not exist.
        description: the ensemble.
        members: its networks, in order.
        provenance: the JSON object that docs/reference/model-repository.md defines.
        overwrite: replace an ensemble of the same name, including members that the new one does not have.

    Returns:
        The version written.

    Raises:
        RepositoryError: the ensemble exists and `overwrite` is false, something else has its name, or the
            folders cannot be written.
        DescriptionError: the provenance cannot be written as JSON.
    """
    check_can_write(repository, description.name, overwrite)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with locked(repository), staging_folder(repository) as staging:
            # Another export may have written meanwhile.
            check_can_write(repository, description.name, overwrite)
            new = staging / "new"
            old = staging / "old"
            old.mkdir()
            _build_ensemble(new, description, members, provenance)
            replaced = _existing_folders(repository, description.name) if overwrite else []
            moves = [(repository / name, old / name) for name in replaced]
            written = [*description.member_names, description.mean_name, description.name]
            moves += [(new / name, repository / name) for name in written]
            move_all(moves, staging)
    except OSError as error:
        message = f"cannot write {description.name} to {repository}: {error}"
        # Other mounts are staged inside the repository, so only an overlay refuses.
        if error.errno == errno.EXDEV:
            message += "; folders of a container image cannot be moved: delete the ensemble's there first"
        raise RepositoryError(message) from error
    return FIRST_VERSION


def _existing_folders(repository: Path, name: str) -> list[str]:
    """Return the names of an ensemble's folders in the repository, the ensemble's own first."""
    pattern = re.compile(rf"{re.escape(name)}(_member\d+|_mean)?")
    if not repository.is_dir():
        return []
    return sorted(path.name for path in repository.iterdir() if pattern.fullmatch(path.name))


def _is_replaceable(path: Path) -> bool:
    """Return whether an entry is a model, or a link, whose target is kept; all else is the user's own."""
    return path.is_symlink() or (path / CONFIG_FILE).is_file()


def _build_ensemble(
    root: Path, description: Description, members: Sequence[Member], provenance: Mapping[str, object]
) -> None:
    build_version(root, description, members, FIRST_VERSION)
    configs = [member_config(description, index, member) for index, member in enumerate(members)]
    configs += [mean_config(description), ensemble_config(description, members, provenance, FIRST_VERSION)]
    for config in configs:
        (root / config.name / CONFIG_FILE).write_text(to_text(config), "utf-8")
    labels = "".join(f"{label}\n" for label in description.labels)
    (root / description.name / "labels.txt").write_text(labels, "utf-8")


def build_version(root: Path, description: Description, members: Sequence[Member], version: int) -> None:
    """Write a version folder for each of the ensemble's models below `root`."""
    graph = mean_graph(len(members), len(description.labels), description.weights)
    models = [*(member.model for member in members), graph.SerializeToString()]
    for name, model in zip([*description.member_names, description.mean_name], models, strict=True):
        folder = root / name / str(version)
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(model)
    ensemble = root / description.name / str(version)
    ensemble.mkdir(parents=True)
    # Triton requires this folder and ignores the file. Git and object stores drop empty folders, and KServe's
    # storage initializer drops empty files.
    (ensemble / ".keep").write_text(KEPT, "utf-8")
