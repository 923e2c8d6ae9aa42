"""All settings, and rules between settings of several sections."""

from pydantic import model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from coserve_server.settings.early_stop import EarlyStopSettings
from coserve_server.settings.engine import EngineSettings
from coserve_server.settings.environment import Environment
from coserve_server.settings.lifecycle import LifecycleSettings
from coserve_server.settings.listening import ListeningSettings
from coserve_server.settings.logs import LogSettings
from coserve_server.settings.mirror import MirrorSettings
from coserve_server.settings.requests import RequestSettings
from coserve_server.settings.triton import TritonSettings
from coserve_server.settings.workers import WorkerSettings


class Settings(
    LogSettings,
    TritonSettings,
    MirrorSettings,
    EarlyStopSettings,
    RequestSettings,
    LifecycleSettings,
    ListeningSettings,
    WorkerSettings,
    EngineSettings,
):
    """The server's settings; arguments override environment variables, which override the file.

    Users see the settings of the last base first.
    """

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources of settings, the strongest first."""
        return init_settings, Environment(settings_cls)

    @model_validator(mode="after")
    def _check_engine(self) -> "Settings":
        if self.engine == "triton":
            if self.repository is not None:
                raise ValueError("repository: engine triton serves what Triton has loaded; leave it out")
            if self.triton_url is None:
                raise ValueError(
                    "triton_url: engine triton needs the address of a Triton server "
                    "(--triton-url or COSERVE_TRITON_URL)"
                )
        else:
            if self.repository is None:
                raise ValueError(
                    f"repository: engine {self.engine} needs the folder of a model repository "
                    "(--repository or COSERVE_REPOSITORY)"
                )
            if self.triton_url is not None:
                raise ValueError("triton_url: only engine triton uses it; add --engine triton")
        return self
