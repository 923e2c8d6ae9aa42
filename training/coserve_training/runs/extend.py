"""The configuration of a resumed run, which may have more epochs than it was started with."""

from dataclasses import replace
from pathlib import Path

from coserve_training.config import TrainConfig
from coserve_training.errors import RunError

RESOLVED = ("warmup_epochs", "co_training_warmup_epochs", "decay_epochs")
"""Lengths that default to a share of the epochs. A run with more epochs keeps its own."""
FREE = ("data", "memory_efficient")
"""Options that may differ on a resume."""


def extend(stored: TrainConfig, given: TrainConfig, folder: Path) -> tuple[TrainConfig, list[str]]:
    """Check that a run can be resumed with a configuration.

    Warm-ups and the decay keep their lengths if there are more epochs. A cosine or linear schedule is
    stretched: the learning rate goes on where the schedule of all epochs has it.

    Args:
        stored: the configuration of the run.
        given: the configuration to resume it with.
        folder: the run folder, for messages.

    Returns:
        The configuration to resume with, and lines that say what more epochs change.

    Raises:
        RunError: if a value differs, or there cannot be more epochs; the message names the first reason.
    """
    if given.epochs <= stored.epochs:
        names = [name for name in TrainConfig.__dataclass_fields__ if name not in FREE]
        changed = [name for name in names if getattr(stored, name) != getattr(given, name)]
        # An extended run holds the lengths that were resolved from its first number of epochs.
        changed = [name for name in changed if name not in RESOLVED or getattr(given, name) is not None]
        if not changed:
            return replace(stored, data=given.data, memory_efficient=given.memory_efficient), []
        raise _refuse(folder, stored, given, changed[0])
    kept = {
        "warmup_epochs": stored.resolved_warmup_epochs,
        "co_training_warmup_epochs": stored.resolved_co_training_warmup_epochs,
        "decay_epochs": stored.decay_epochs if stored.decay_epochs is not None else stored.epochs / 3,
    }
    for name in TrainConfig.__dataclass_fields__:
        own = kept.get(name, getattr(stored, name))
        if name not in (*FREE, "epochs") and getattr(given, name) not in (own, getattr(stored, name)):
            raise _refuse(folder, stored, given, name)
    if stored.start_size is not None:
        raise RunError(
            f"{folder} cannot have more than {stored.epochs} epochs: its images grow from start_size over "
            "the first half of them; start another run from its weights with --initial"
        )
    extended = replace(given, **kept)  # type: ignore[arg-type]
    schedule = (
        f"the learning rate continues on one {stored.schedule} schedule over all {given.epochs} epochs, "
        "so it rises once"
        if stored.schedule in ("cosine", "linear")
        else f"the {stored.schedule} schedule of the learning rate goes on"
    )
    return extended, [
        f"epochs raised from {stored.epochs} to {given.epochs}: {schedule}; warm-ups stay as they were"
    ]


def _refuse(folder: Path, stored: TrainConfig, given: TrainConfig, name: str) -> RunError:
    hint = "; only epochs can be raised" if name == "epochs" else ""
    return RunError(
        f"{folder} was started with {name} {getattr(stored, name)}, not {getattr(given, name)}; "
        f"a resumed run keeps its configuration{hint}"
    )
