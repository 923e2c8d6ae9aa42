"""Recipes: TOML files of options, which users can copy and change (docs/train.md)."""

from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any

import tomli

from coserve_training.config import validate
from coserve_training.errors import ConfigError

FOLDER = resources.files("coserve_training") / "recipes"
COUNTED_IN_EPOCHS = ("warmup_epochs", "co_training_warmup_epochs", "decay_epochs")


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with Coserve."""
    return sorted(file.name.removesuffix(".toml") for file in FOLDER.iterdir())


def with_recipe(recipe: str, options: dict[str, Any]) -> dict[str, Any]:
    """Add options to a recipe's and override them.

    If the options change `epochs`, the recipe's warm-ups and decays are scaled in proportion.

    Args:
        recipe: one of `recipe_names`, or a path that ends in `.toml`.
        options: the user's options; `network` selects among the recipe's `[[where]]` tables.

    Raises:
        ConfigError: for an unknown name, or a file that is not a recipe.
    """
    values = _read(recipe)
    tables = values.pop("where", [])
    _check(recipe, values)
    for table in tables:
        patterns = table.pop("network", None)
        _check(recipe, table)
        if not isinstance(patterns, list):
            raise ConfigError(f'recipe {recipe}: a [[where]] table needs network = ["<name or pattern>", …]')
        if any(fnmatch(str(options.get("network")), str(pattern)) for pattern in patterns):
            values |= table
    if "epochs" in options and "epochs" in values:
        for name in COUNTED_IN_EPOCHS:
            if name in values:
                values[name] *= options["epochs"] / values["epochs"]
    return {**values, **options}


def _check(recipe: str, values: dict[str, Any]) -> None:
    try:
        validate(values)
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
        return tomli.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"recipe {recipe}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"recipe {recipe}: not valid TOML ({error})") from error
