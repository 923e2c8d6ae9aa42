"""Everything an operator may set, read once at start from arguments and `COSERVE_…` variables."""

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from coserve_server.errors import SettingsError

MAX_PIXELS = 89_478_485
"""From here on Pillow itself suspects a decompression bomb."""


class Settings(BaseSettings):
    """The server's settings; arguments win over environment variables."""

    model_config = SettingsConfigDict(env_prefix="COSERVE_", frozen=True)

    repository: Path
    """Folder of the model repository."""
    engine: Literal["onnxruntime"] = "onnxruntime"
    """What executes the members."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(8000, ge=0, le=65535)
    """TCP port to listen on; 0 picks a free one."""
    default_model: str | None = None
    """Ensemble that answers requests that name none."""
    min_members: int | None = Field(None, ge=1)
    """Members that must answer; None: all of them. An ensemble with fewer members needs all of its own."""
    deadline_ms: float = Field(10_000, gt=0)
    """Time for decoding, waiting and inference of one request."""
    upload_timeout_ms: float = Field(60_000, gt=0)
    """Time for a request's body to arrive."""
    max_requests: int = Field(64, ge=1)
    """Classification requests in progress at once; more are refused."""
    max_body_bytes: int = Field(32 * 2**20, ge=1)
    """Bytes in the body of one request."""
    max_images: int = Field(64, ge=1)
    """Images in one request."""
    max_pixels: int = Field(50_000_000, ge=1, le=MAX_PIXELS)
    """Pixels of one image, before and after resizing."""
    log_level: Literal["critical", "error", "warning", "info", "debug"] = "info"
    """Least severe messages that are logged."""


def load_settings(**arguments: object) -> Settings:
    """Read the settings; an argument that is None leaves the setting to the environment.

    Raises:
        SettingsError: a setting is missing or out of range; the text names every one.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]  # pydantic checks the values
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise SettingsError(f"settings: {'; '.join(faults)}") from error
