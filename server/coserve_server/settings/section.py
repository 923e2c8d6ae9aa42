"""What the sections of the settings share."""

from pydantic_settings import BaseSettings, SettingsConfigDict


class Section(BaseSettings):
    """Base of settings on one subject; the text below each setting is its description for users."""

    model_config = SettingsConfigDict(
        env_prefix="COSERVE_", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


def split_list(value: object) -> object:
    """Return the parts of a text that are separated by commas; lists in the file pass unchanged."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
