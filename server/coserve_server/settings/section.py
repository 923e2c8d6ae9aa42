"""What the sections of the settings share."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from coserve_server.files import check_regular, describe


def _check_file(path: Path) -> Path:
    try:
        check_regular(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {describe(error)}") from error
    return path


File = Annotated[Path, AfterValidator(_check_file)]
"""A file that exists."""

LONGEST_MS = 2**31 - 1
"""Limit on times in milliseconds, about 25 days: they fit gRPC's options and, in nanoseconds, 64 bits."""
Milliseconds = Annotated[float, Field(le=LONGEST_MS)]
"""A time in a setting."""


class Section(BaseSettings):
    """Base of settings on one subject; the text below each setting is its description for users."""

    model_config = SettingsConfigDict(
        env_prefix="COSERVE_", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def split_list(value: object) -> object:
    """Return the parts of a text that are separated by commas; lists in the file pass unchanged."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
