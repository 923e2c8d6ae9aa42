"""Reads the settings, once at start, from arguments, `COSERVE_…` variables and a TOML file."""

import difflib
from pathlib import Path

from pydantic import ValidationError
from pydantic_settings import SettingsConfigDict

from coserve_server.errors import SettingsError
from coserve_server.settings.settings import Settings


def load_settings(file: Path | None = None, /, **arguments: object) -> Settings:
    """Read the settings; arguments that are None are ignored.

    Args:
        file: TOML file whose keys are settings.

    Raises:
        SettingsError: settings are unknown, missing or out of range; the error names all of them.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    if file is not None and not file.is_file():
        raise SettingsError([f"{file} is not a file"])
    try:
        return _settings_class(file)(**given)  # type: ignore[arg-type]  # pydantic checks the values
    except ValidationError as error:
        faults = [_describe_fault(one["type"], one["loc"], one["msg"]) for one in error.errors()]
        raise SettingsError(faults) from error
    # Errors in TOML syntax and in UTF-8 are ValueErrors.
    except (ValueError, OSError) as error:
        if file is None:
            raise
        raise SettingsError([f"{file} cannot be read: {error}"]) from error


def _settings_class(file: Path | None) -> type[Settings]:
    """Return the settings with a file as last source; pydantic-settings takes it only from the class."""

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=file)

    return FromFile if file else Settings


def _describe_fault(kind: str, location: tuple[int | str, ...], message: str) -> str:
    """Write a fault that pydantic found as `setting: what is wrong`."""
    name = str(location[0]) if location else ""
    if kind == "extra_forbidden":
        (nearest,) = difflib.get_close_matches(name, Settings.model_fields, 1, cutoff=0)
        return f"{name}: no setting has this name; the nearest is {nearest}"
    return (f"{name}: " if name else "") + message.removeprefix("Value error, ")
