"""Starts the server: in this process, or in several workers, or as an application for another server.

`serve` and `create_app` change nothing of the process around them; `coserve serve` alone does that.
"""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from coserve_server.settings import Settings, load_settings
from coserve_server.settings.load import find_ignored_variables

logger = logging.getLogger(__name__)


async def serve(
    settings: Settings, announce: Callable[[str], None] | None = None, *, handle_signals: bool = False
) -> None:
    """Serve over HTTP, and over gRPC if the settings say so, until the task is cancelled.

    Requests in progress then get their answers. With several workers, each is a process of its own, and this
    one only accepts connections.

    Args:
        announce: receives a summary of what is served, and where, once connections are accepted.
        handle_signals: whether SIGINT and SIGTERM stop the server too; only possible in the main thread. A
            second signal then ends the process.

    Raises:
        StartupError: the address, a certificate, the keys, the repository or a member is not usable, or a
            worker ends again and again.
    """
    # Each imports what the other does not need: the parent of workers has no engine.
    from coserve_server.catalogue.reading import read_patiently
    from coserve_server.machine.open_files import describe_lack
    from coserve_server.workers.plan import plan_slices

    _warn()
    plan = partial(plan_slices, settings)
    slices = await read_patiently(settings.repository, plan) if settings.repository else plan()
    if lack := describe_lack(-(-count_connections(settings) // len(slices))):
        logger.warning(lack)
    if len(slices) == 1:
        from coserve_server.serving import serve_process

        await serve_process(settings, announce, handle_signals=handle_signals)
    else:
        from coserve_server.workers.supervisor import supervise

        await supervise(settings, slices, announce, handle_signals=handle_signals)


def count_connections(settings: Settings) -> int:
    """Return how many connections there may be, over HTTP and gRPC."""
    return settings.max_connections * (1 if settings.grpc_port is None else 2)


def create_app(settings: Settings | None = None) -> ASGIApp:
    """Return an ASGI application for any ASGI server; ensembles are loaded when the server starts it.

    What `serve` adds is then up to the other server: the address, TLS, limits on connections and heads,
    draining, workers. It does not serve gRPC.

    Args:
        settings: None to read them from `COSERVE_…` variables.

    Raises:
        SettingsError: a setting is unknown, missing or out of range.
    """
    chosen = settings or load_settings()

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        async with open_app(chosen) as app:
            host.default = app
            yield
        host.default = _refuse_unloaded

    host = Router(lifespan=lifespan, redirect_slashes=False, default=_refuse_unloaded)
    return host


async def _refuse_unloaded(_scope: Scope, _receive: Receive, _send: Send) -> None:
    raise RuntimeError(
        "no ensemble is loaded: the ASGI server must run the application's lifespan, before its requests"
    )


@asynccontextmanager
async def open_app(settings: Settings) -> AsyncIterator[FastAPI]:
    """Start the engine and yield the application over it; free both at the end.

    Raises:
        StartupError: the keys, the repository or a member is not usable.
    """
    from coserve_server.core import open_core

    _warn()
    async with open_core(settings) as core:
        yield core.build_app()


def _warn() -> None:
    for note in find_ignored_variables():
        logger.warning(note)
