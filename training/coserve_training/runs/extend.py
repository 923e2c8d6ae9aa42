"""The configuration of a resumed run, which may have more epochs than it was started with."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from coserve_training.config import TrainConfig
from coserve_training.errors import RunError
from coserve_training.recipes import with_recipe
from coserve_training.runs.folder import Description

FREE = ("data", "memory_efficient")
"""Options that may differ on a resume."""


def resumed_config(folder: Path, options: Mapping[str, Any], recipe: str | None = None) -> TrainConfig:
    """Return a run's configuration with the options of a resume; `extend` checks whether it may differ.

    Args:
        folder: the run folder.
        options: override the run's configuration and the recipe.
        recipe: a recipe to compare with the run's configuration; see `with_recipe`.

    Raises:
        RunError: if there is no run.
        ConfigError: if the recipe or an option is not valid.
    """
    run = Description.read(folder)
    values: dict[str, Any] = {}
    if recipe is not None:
        # The recipe's values must be the run's, so they are made as they were at its start.
        began = {name: getattr(run.config, name) for name in ("data", "network", "split")}
        began["epochs"] = run.extended[0].planned if run.extended else run.config.epochs
        values = with_recipe(recipe, began)
        del values["epochs"]
    return TrainConfig.from_json({**asdict(run.config), **values, **options})


def extend(stored: TrainConfig, given: TrainConfig, folder: Path) -> tuple[TrainConfig, list[str]]:
    """Check that a run can be resumed with a configuration.

    Warm-ups, decay and growth keep their lengths if there are more epochs. A cosine or linear schedule is
    stretched: the learning rate continues at its value in the schedule of all epochs.

    Args:
        stored: the configuration of the run.
        given: the configuration to resume it with.
        folder: the run folder, for messages.

    Returns:
        The configuration to resume with, and lines that say what more epochs change.

    Raises:
        RunError: if another value differs, or there are fewer epochs; the message names the first one.
    """
    kept = {
        "warmup_epochs": stored.resolved_warmup_epochs,
        "co_training_warmup_epochs": stored.resolved_co_training_warmup_epochs,
        "decay_epochs": stored.decay_epochs if stored.decay_epochs is not None else stored.epochs / 3,
        "growth_epochs": None if stored.start_size is None else stored.resolved_growth_epochs,
    }
    if given.epochs < stored.epochs:
        raise _refuse(folder, stored, given, "epochs")
    for name in TrainConfig.__dataclass_fields__:
        value = getattr(given, name)
        # An extended run holds lengths that were resolved from its first number of epochs.
        same = name in kept and value in (kept[name], None)
        if name not in (*FREE, "epochs") and value != getattr(stored, name) and not same:
            raise _refuse(folder, stored, given, name)
    if given.epochs == stored.epochs:
        return replace(stored, data=given.data, memory_efficient=given.memory_efficient), []
    extended = replace(given, **kept)  # type: ignore[arg-type]
    schedule = (
        f"the learning rate continues on one {stored.schedule} schedule over all {given.epochs} epochs, "
        "so it rises once"
        if stored.schedule in ("cosine", "linear")
        else f"the {stored.schedule} schedule of the learning rate goes on"
    )
    return extended, [
        f"epochs raised from {stored.epochs} to {given.epochs}: {schedule}; warm-ups"
        + (" and the growth of images" if stored.start_size is not None else "")
        + " stay as they were"
    ]


def _refuse(folder: Path, stored: TrainConfig, given: TrainConfig, name: str) -> RunError:
    return RunError(
        f"{folder} was started with {name} {getattr(stored, name)}, not {getattr(given, name)}; "
        "a resumed run keeps its configuration; only epochs can be raised, and data and memory_efficient "
        "changed"
    )
