"""Starts the server: engine, application, socket.

`serve` and `create_app` change nothing of the process around them; `coserve serve` alone does that.
"""

import asyncio
import logging
import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from starlette.routing import Router
from starlette.types import ASGIApp

from coserve_server.api.app import build_app
from coserve_server.catalogue.reload import Reloader
from coserve_server.errors import AddressError, SettingsError
from coserve_server.machine.cores import Cores, usable_cores
from coserve_server.pipeline.classifier import Classifier
from coserve_server.security.key_ring import KeyRing
from coserve_server.security.tls import server_context
from coserve_server.settings import Settings, load_settings
from coserve_server.settings.load import find_ignored_variables
from coserve_server.transport.connections import limited
from coserve_server.transport.drain import DrainingServer

if TYPE_CHECKING:
    from coserve_server.engines.embedded.engine import EmbeddedEngine
    from coserve_server.engines.triton.engine import TritonEngine
    from coserve_server.observability.tracing import Tracer

logger = logging.getLogger(__name__)

SHUTDOWN_MARGIN_S = 2


async def serve(
    settings: Settings, announce: Callable[[str], None] | None = None, *, handle_signals: bool = False
) -> None:
    """Serve over HTTP until the task is cancelled; requests in progress then get their answers.

    Args:
        announce: receives a summary of what is served, and where, once connections are accepted.
        handle_signals: whether SIGINT and SIGTERM stop the server too; only possible in the main thread. A
            second signal then ends the process.

    Raises:
        StartupError: the address, a certificate, the keys, the repository or a member is not usable.
    """
    tls = server_context(settings)
    with bind(settings.host, settings.port) as listener:
        async with open_app(settings) as app:
            classifier: Classifier = app.state.classifier
            address = format_url(listener, "https" if tls else "http")
            config = uvicorn.Config(
                app,
                http=limited(settings, classifier.metrics),
                lifespan="off",
                log_level=None,
                log_config=None,
                access_log=False,
                ws="none",
                ssl_context_factory=(lambda *_: tls) if tls else None,
                timeout_graceful_shutdown=math.ceil(settings.deadline_ms / 1000) + SHUTDOWN_MARGIN_S,
            )
            server = DrainingServer(
                config,
                drain_delay_s=settings.drain_delay_ms / 1000,
                handshake_s=settings.head_timeout_ms / 1000,
                handle_signals=handle_signals,
                started=lambda: announce(summarize(classifier, address)) if announce else None,
                draining=classifier.catalogue.drain,
            )
            serving = asyncio.ensure_future(server.serve(sockets=[listener]))
            try:
                await asyncio.shield(serving)
            except asyncio.CancelledError:
                server.stop()
                await serving
                raise


def create_app(settings: Settings | None = None) -> ASGIApp:
    """Return an ASGI application for any ASGI server; ensembles are loaded when the server starts it.

    What `serve` adds is then up to the other server: the address, TLS, limits on connections and heads,
    draining.

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

    host = Router(lifespan=lifespan, redirect_slashes=False)
    return host


@asynccontextmanager
async def open_app(settings: Settings) -> AsyncIterator[FastAPI]:
    """Start the engine and yield the application over it; free both at the end.

    Raises:
        StartupError: the keys, the repository or a member is not usable.
    """
    for note in find_ignored_variables():
        logger.warning(note)
    tracer = _tracer(settings)
    keys = KeyRing(settings.api_keys_file) if settings.api_keys_file else None
    cores = usable_cores()
    reloader = None
    if settings.repository is None:
        classifier = Classifier(await _triton_engine(settings), settings, cores.count)
    else:
        engine = await _embedded_engine(settings, cores)
        classifier = Classifier(engine, settings, cores.count)
        reloader = Reloader(settings.repository, engine, classifier.catalogue)
    watching = None
    if reloader is not None and settings.repository_poll_ms:
        watching = asyncio.create_task(reloader.watch(settings.repository_poll_ms / 1000))
    try:
        yield build_app(classifier, keys, reloader, tracer)
    finally:
        if watching is not None:
            watching.cancel()
        await classifier.close()
        if tracer is not None:
            await tracer.close()


def _tracer(settings: Settings) -> "Tracer | None":
    """Return what sends traces; without an endpoint its libraries are not even imported."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from coserve_server.observability.tracing import Tracer
    except ImportError as error:
        fault = f"otlp_endpoint: traces need the extra otel: pip install 'coserve[otel]' ({error})"
        raise SettingsError([fault]) from error
    return Tracer(str(settings.otlp_endpoint))


async def _triton_engine(settings: Settings) -> "TritonEngine":
    from coserve_server.engines.triton.engine import TritonEngine

    # Triton's models may change at any time, so nothing about them can prevent the start.
    return await TritonEngine.connect(settings)


async def _embedded_engine(settings: Settings, cores: Cores) -> "EmbeddedEngine":
    from coserve_server.engines.embedded.options import EngineOptions
    from coserve_server.engines.factory import create_engine
    from coserve_server.ensembles.repository import read_versions

    assert settings.repository is not None
    ensembles = read_versions(settings.repository)
    if settings.default_model is not None and settings.default_model not in ensembles:
        raise SettingsError(
            [f"default_model: {settings.default_model!r} is not served; choose from {', '.join(ensembles)}"]
        )
    engine = create_engine(EngineOptions.from_settings(settings), cores)
    try:
        for name, versions in ensembles.items():
            await engine.replace(name, versions)
    except BaseException:
        await engine.close()
        raise
    return engine


def bind(host: str, port: int) -> socket.socket:
    """Return a TCP socket bound to the address, not yet accepting connections.

    Raises:
        AddressError: the address is in use, is not this machine's, or needs privileges.
    """
    listener = None
    try:
        # asyncio disables Nagle's algorithm only on sockets that name TCP as their protocol.
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise AddressError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


def format_url(listener: socket.socket, scheme: str) -> str:
    """Return the URL at which the socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def summarize(classifier: Classifier, address: str) -> str:
    """Return what is served, what is not ready and why, and a command to try."""
    lines = [f"Coserve at {address} (API: {address}/docs)"]
    for name, ensemble in classifier.catalogue.ensembles.items():
        default = " (default)" if name == classifier.settings.default_model else ""
        count = len(ensemble.members)
        where = classifier.engine.describe(ensemble)
        lines.append(f"  {name}{default}: {count} member{'s' * (count > 1)}, {where}")
    lines.extend(f"  not ready: {fault}" for fault in classifier.catalogue.faults())
    needed = len(classifier.catalogue.ensembles) > 1 and classifier.settings.default_model is None
    query = f"?model={next(iter(classifier.catalogue.ensembles))}" if needed else ""
    key = "-H 'X-API-Key: YOUR_KEY' " if classifier.settings.api_keys_file else ""
    lines.append(f"  try: curl {key}-F files=@photo.jpg '{address}/v1/classify{query}'")
    return "\n".join(lines)
