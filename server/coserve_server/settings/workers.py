"""How many processes serve."""

from pydantic import Field

from coserve_server.settings.section import Section


class WorkerSettings(Section):
    """Worker processes."""

    workers: int | None = Field(None, ge=1, le=256)
    """Processes that share the requests and appear as one server, each with copies of the members on its own
    cores or GPUs; by default as many as the cores or GPUs and the memory suggest. With the engine `triton`,
    1."""
