"""Reads the settings, once at start, from arguments, `COSERVE_…` variables and a TOML file."""

import difflib
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource

from coserve_server.errors import SettingsError
from coserve_server.files import describe, read_text
from coserve_server.settings.environment import find_notes
from coserve_server.settings.settings import Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_FILE_BYTES = 2**20


def load_settings(file: Path | None = None, /, **arguments: object) -> Settings:
    """Read the settings; arguments that are None are ignored.

    Args:
        file: TOML file whose keys are settings.

    Raises:
        SettingsError: settings are unknown, missing or out of range; the error names all of them.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    content = read_file(file) if file is not None else {}
    try:
        return _settings_class(content)(**given)  # type: ignore[arg-type]  # pydantic checks the values
    except ValidationError as error:
        faults = [_describe_fault(one["type"], one["loc"], one["msg"]) for one in error.errors()]
        raise SettingsError(faults) from error


def find_ignored_variables() -> list[str]:
    """Describe environment variables that look like settings, but are not taken."""
    return find_notes(Settings.model_fields)


def read_file(file: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        SettingsError: it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(read_text(file, MAX_FILE_BYTES))
    except OSError as error:
        raise SettingsError([f"{file} cannot be read: {describe(error)}"]) from error
    # Errors of syntax are ValueErrors; the parser calls itself for arrays in arrays.
    except (ValueError, RecursionError) as error:
        raise SettingsError([f"{file} is not TOML: {error}"]) from error


def _settings_class(content: dict[str, Any]) -> type[Settings]:
    """Return the settings with a file's content as last source."""

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *sources: Any, **named: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            others = super().settings_customise_sources(settings_cls, *sources, **named)
            return *others, InitSettingsSource(settings_cls, content)

    return FromFile if content else Settings


def _describe_fault(kind: str, location: tuple[int | str, ...], message: str) -> str:
    """Write a fault that pydantic found as `setting: what is wrong`, on one line."""
    name = str(location[0])[:100] if location else ""
    if kind == "extra_forbidden":
        (nearest,) = difflib.get_close_matches(name, Settings.model_fields, 1, cutoff=0)
        return f"{_quote(name)}: no setting has this name; the nearest is {nearest}"
    return (f"{name}: " if name else "") + _quote(message.removeprefix("Value error, "))


def _quote(text: str) -> str:
    return text if text.isprintable() else repr(text)
