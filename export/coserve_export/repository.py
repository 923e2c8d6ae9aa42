"""Writing an ensemble's folders into a Triton model repository: all of them or none."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from coserve_export.ensemble import Description, Member
from coserve_export.errors import RepositoryError
from coserve_export.mean_graph import mean_graph
from coserve_export.triton_config import ensemble_config, mean_config, member_config, to_text


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
) -> None:
    """Write an ensemble's folders; a reader finds the ensemble only once everything it needs is in place.

    The folders are built beside the repository, since Triton takes every folder inside for a model. An
    ensemble that was there before is moved out first, and moved back where a step fails.

    Args:
        repository: made where it does not exist.
        provenance: the contract's JSON object.
        overwrite: replace an ensemble of the same name, and members of it that are left over.

    Raises:
        RepositoryError: where the ensemble exists and `overwrite` is false, or the folders cannot be written.
        DescriptionError: for provenance that JSON cannot hold.
    """
    check_free(repository, description.name, overwrite)
    try:
        repository.mkdir(parents=True, exist_ok=True)
        with _staging(repository) as staging:
            new, old = staging / "new", staging / "old"
            old.mkdir()
            _build(new, description, members, provenance)
            retired = _folders_of(repository, description.name) if overwrite else []
            moves = [(repository / name, old / name) for name in retired]
            placed = [*description.member_names, description.mean_name, description.name]
            moves += [(new / name, repository / name) for name in placed]
            _move_all(moves)
    except OSError as error:
        raise RepositoryError(f"cannot write {description.name} to {repository}: {error}") from error


def _folders_of(repository: Path, name: str) -> list[str]:
    """Folders that an ensemble of that name has, the ensemble's own first."""
    pattern = re.compile(rf"{re.escape(name)}(_member\d+|_mean)?")
    if not repository.is_dir():
        return []
    return sorted(path.name for path in repository.iterdir() if pattern.fullmatch(path.name))


@contextmanager
def _staging(repository: Path) -> Iterator[Path]:
    parent = repository.resolve().parent
    # Folders cannot be renamed across a mount, and a volume's parent is often not ours.
    if repository.is_mount() or not os.access(parent, os.W_OK):
        parent = repository
    staging = Path(tempfile.mkdtemp(prefix=".coserve-", dir=parent))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _build(
    root: Path, description: Description, members: Sequence[Member], provenance: Mapping[str, object]
) -> None:
    for index, member in enumerate(members):
        folder = root / description.member_names[index]
        _write_model(folder, to_text(member_config(description, index, member)), member.model)
    graph = mean_graph(len(members), len(description.labels), description.weights)
    _write_model(root / description.mean_name, to_text(mean_config(description)), graph.SerializeToString())

    ensemble = root / description.name
    (ensemble / "1").mkdir(parents=True)
    (ensemble / "1" / ".keep").touch()
    (ensemble / "labels.txt").write_text("".join(f"{label}\n" for label in description.labels), "utf-8")
    config = to_text(ensemble_config(description, members, provenance))
    (ensemble / "config.pbtxt").write_text(config, "utf-8")


def _write_model(folder: Path, config: str, model: bytes) -> None:
    (folder / "1").mkdir(parents=True)
    (folder / "1" / "model.onnx").write_bytes(model)
    (folder / "config.pbtxt").write_text(config, "utf-8")


def _move_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename in order; undo what was done where one fails or the user interrupts."""
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
    except BaseException:
        for source, target in reversed(done):
            target.rename(source)
        raise
