"""Changes of the repository while the server runs, and its shutdown."""

from pydantic import Field

from coserve_server.settings.section import Milliseconds, Section


class LifecycleSettings(Section):
    """Reload and shutdown."""

    exit_on_error: bool | None = None
    """When ensembles that cannot be loaded end the start: `true` if there is one, `false` never; by default
    only if nothing can be served."""
    repository_poll_ms: Milliseconds = Field(1000, ge=0)
    """Time between checks of `repository` for changes to serve without a restart; 0 for no checks."""
    repository_control: bool = False
    """Whether clients may load and unload ensembles of `repository` over `/v2`."""
    drain_delay_ms: Milliseconds = Field(0, ge=0)
    """Time after SIGTERM during which `/readyz` reports not ready but new requests are still served."""
