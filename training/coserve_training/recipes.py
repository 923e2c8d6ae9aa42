"""Recipes: TOML files of options, which users can copy and change (docs/guides/training/train.md)."""

import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any

from coserve_training.config import TrainConfig, validate
from coserve_training.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = resources.files("coserve_training") / "recipes"
CONDITIONS = ("network", "dataset", "split")
"""Keys of a `[[where]]` table that say where it applies. Each lists values; networks may be patterns."""
KNOWN = {
    "cifar10": re.compile("cifar.?10(?!0)"),
    "cifar100": re.compile("cifar.?100"),
    "svhn": re.compile("svhn|_32x32"),
    "imagenet": re.compile("^(imagenet(?!te)|ilsvrc)"),
}
"""Data sets by the names of their published files, and of folders and zips that are named after them."""
UNHASHED = ("data", "network", "split", "initial", "seed", "memory_efficient", "skip_corrupt")
COUNTED_IN_EPOCHS = ("warmup_epochs", "co_training_warmup_epochs", "decay_epochs", "growth_epochs")


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with Coserve."""
    return sorted(file.name.removesuffix(".toml") for file in FOLDER.iterdir())


def with_recipe(
    recipe: str, options: dict[str, Any], report: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Add options to a recipe's and override them.

    If the options change `epochs`, the recipe's warm-ups and decays are scaled in proportion.

    Args:
        recipe: one of `recipe_names`, or a path that ends in `.toml`.
        options: the user's options; `network`, `data` and `split`, here or in the recipe, choose among its
            `[[where]]` tables.
        report: called with a line that says whether the recipe's values for a data set are used.

    Raises:
        ConfigError: for an unknown name, or a file that is not a recipe.
    """
    values = _read(recipe)
    tables = values.pop("where", [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"recipe {recipe}: where must be tables, each headed [[where]] in double brackets")
    values = _check(recipe, values)
    given = {**values, **options}
    facts = {
        "network": given.get("network"),
        "dataset": recognise_dataset(given.get("data", ())),
        "split": given.get("split", 1),
    }
    for table in tables:
        conditions = {name: table[name] for name in CONDITIONS if name in table}
        changes = _check(recipe, {name: table[name] for name in table if name not in CONDITIONS})
        if not conditions or not all(isinstance(allowed, list) for allowed in conditions.values()):
            raise ConfigError(
                f"recipe {recipe}: a [[where]] table needs network, dataset or split, each with a list, such "
                'as network = ["resnet*", "densenet190"]'
            )
        if unknown := [name for name in conditions.get("dataset", []) if str(name) not in KNOWN]:
            raise ConfigError(
                f"recipe {recipe}: a [[where]] table cannot apply to dataset {unknown[0]!r}, only to "
                f"{', '.join(KNOWN)}"
            )
        if all(_matches(facts[name], allowed) for name, allowed in conditions.items()):
            values |= changes
    named = dict.fromkeys(name for table in tables for name in table.get("dataset", []))
    if report is not None and named and facts["dataset"] not in named:
        names = " or ".join(named)
        report(f"recipe {recipe}: the data are not called {names}, so its values for these are not used")
    elif report is not None and named:
        report(f"recipe {recipe}: the data are called {facts['dataset']}, so its values for these are used")
    if "epochs" in options and "epochs" in values:
        for name in COUNTED_IN_EPOCHS:
            if name in values:
                values[name] *= options["epochs"] / values["epochs"]
    return {**values, **options}


def recognise_dataset(sources: Sequence[str | Path]) -> str | None:
    """Return which of the `KNOWN` data sets all the sources are, by their names; None for others.

    A file or folder may carry the name, or else the folder that it is in.
    """
    found = {_recognise(Path(source)) for source in sources}
    return found.pop() if len(found) == 1 else None


def _recognise(source: Path) -> str | None:
    for part in (source.name.lower(), source.parent.name.lower()):
        for name, pattern in KNOWN.items():
            if pattern.search(part):
                return name
    return None


def _matches(fact: object, allowed: list[object]) -> bool:
    return any(fnmatch(str(fact), str(pattern)) for pattern in allowed)


def _check(recipe: str, values: dict[str, Any]) -> dict[str, Any]:
    """Check a recipe's values, and convert each to its option's type: a file may have "3" for 3."""
    try:
        return validate(values)
    except ConfigError as error:
        raise ConfigError(f"recipe {recipe}: {error}") from error


def _read(recipe: str) -> dict[str, Any]:
    known = recipe_names()
    if recipe not in known and not recipe.endswith(".toml"):
        raise ConfigError(
            f"unknown recipe {recipe!r}; choose one of {', '.join(known)}, or the path of a .toml file"
        )
    file = FOLDER / f"{recipe}.toml" if recipe in known else Path(recipe)
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"recipe {recipe}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"recipe {recipe}: not valid TOML ({error})") from error


def recipe_hash(config: TrainConfig) -> str:
    """Return 12 hex digits that identify a recipe: what members are trained by, except for their network.

    They leave out the network and its split, paths, the seed, and options without effect. An option with its
    default counts only if that depends on the epochs, so that options of later versions change no hash.
    """
    defaults = {field.name: field.default for field in fields(config)}
    recipe = {name: value for name, value in asdict(config).items() if value != defaults[name]}
    recipe["warmup_epochs"] = config.resolved_warmup_epochs
    recipe["co_training_warmup_epochs"] = config.resolved_co_training_warmup_epochs
    for name in {*UNHASHED, *_without_effect(config)}:
        recipe.pop(name, None)
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]


def _without_effect(config: TrainConfig) -> set[str]:
    """Return the options that other options leave without effect."""
    decays = config.schedule in ("exponential", "step")
    effective = {
        "crop_area": config.crop == "resized",
        "policy_operations": config.policy == "randaugment",
        "policy_magnitude": config.policy == "randaugment",
        "policy_magnitude_std": config.policy == "randaugment",
        "growth_epochs": config.start_size is not None,
        "erasing_area": config.erasing > 0,
        "erasing_ratio": config.erasing > 0,
        "decay_rate": decays,
        "decay_epochs": decays,
        "final_learning_rate": not decays,
        "co_training_term": config.co_training_weight > 0,
        "co_training_warmup_epochs": config.co_training_weight > 0,
    }
    return {name for name, has_effect in effective.items() if not has_effect}
