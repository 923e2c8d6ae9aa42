"""Starts the server: engine, application, socket.

`serve` and `create_app` change nothing of the process around them; `coserve serve` alone does that.
"""

import asyncio
import logging
import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from coserve_server.api.app import build_app
from coserve_server.api.reporting import Reporter
from coserve_server.catalogue.reload import Reloader
from coserve_server.errors import EngineError, SettingsError
from coserve_server.machine.cores import Cores, usable_cores
from coserve_server.pipeline.classifier import Classifier
from coserve_server.security.key_ring import KeyRing
from coserve_server.security.tls import server_context
from coserve_server.settings import Settings, load_settings
from coserve_server.settings.load import find_ignored_variables
from coserve_server.transport.binding import bind, format_address
from coserve_server.transport.connections import limited
from coserve_server.transport.drain import DrainingServer

if TYPE_CHECKING:
    from coserve_server.engines.embedded.engine import EmbeddedEngine
    from coserve_server.engines.triton.engine import TritonEngine
    from coserve_server.observability.tracing import Tracer
    from coserve_server.transport.grpc_server import GrpcServer

logger = logging.getLogger(__name__)

SHUTDOWN_MARGIN_S = 2


async def serve(
    settings: Settings, announce: Callable[[str], None] | None = None, *, handle_signals: bool = False
) -> None:
    """Serve over HTTP, and over gRPC if the settings say so, until the task is cancelled.

    Requests in progress then get their answers.

    Args:
        announce: receives a summary of what is served, and where, once connections are accepted.
        handle_signals: whether SIGINT and SIGTERM stop the server too; only possible in the main thread. A
            second signal then ends the process.

    Raises:
        StartupError: the address, a certificate, the keys, the repository or a member is not usable.
    """
    tls = server_context(settings)
    grace_s = math.ceil(settings.deadline_ms / 1000) + SHUTDOWN_MARGIN_S
    with bind(settings.host, settings.port) as listener:
        async with _open_grpc(settings) as grpc, open_core(settings) as core:
            classifier = core.classifier
            if grpc is not None:
                await _start_grpc(grpc, core)
            address = format_url(listener, "https" if tls else "http")
            config = uvicorn.Config(
                core.build_app(),
                http=limited(settings, classifier.metrics),
                lifespan="off",
                # Otherwise from the environment, where it need not be a number.
                workers=1,
                # Likewise, from FORWARDED_ALLOW_IPS.
                forwarded_allow_ips=",".join(settings.trusted_proxies),
                log_level=None,
                log_config=None,
                access_log=False,
                ws="none",
                ssl_context_factory=(lambda *_: tls) if tls else None,
                timeout_graceful_shutdown=grace_s,
                timeout_keep_alive=settings.idle_timeout_ms / 1000,  # type: ignore[arg-type]  # any time will do
            )
            server = DrainingServer(
                config,
                drain_delay_s=settings.drain_delay_ms / 1000,
                handshake_s=settings.head_timeout_ms / 1000,
                handle_signals=handle_signals,
                started=lambda: announce(summarize(classifier, address, grpc)) if announce else None,
                draining=classifier.catalogue.drain,
                closing=(lambda: grpc.stop(grace_s)) if grpc else None,
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
    draining. It does not serve gRPC.

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
    async with open_core(settings) as core:
        yield core.build_app()


@dataclass(frozen=True)
class Core:
    """State shared by the applications over HTTP and gRPC.

    Attributes:
        keys: the valid API keys; None to require none.
        reloader: loads and unloads ensembles; None with the engine `triton`.
        tracer: sends traces of requests; None to send none.
    """

    classifier: Classifier
    keys: KeyRing | None
    reloader: Reloader | None
    tracer: "Tracer | None"

    def build_app(self) -> FastAPI:
        """Build the ASGI application."""
        return build_app(self.classifier, self.keys, self.reloader, self.tracer)


@asynccontextmanager
async def open_core(settings: Settings) -> AsyncIterator[Core]:
    """Start the engine and everything else the applications need; free it all at the end.

    Raises:
        StartupError: the keys, the repository or a member is not usable.
    """
    for note in find_ignored_variables():
        logger.warning(note)
    keys = KeyRing(settings.api_keys_file) if settings.api_keys_file else None
    cores = usable_cores()
    reloader = None
    async with AsyncExitStack() as stack:
        tracer = _tracer(settings)
        if tracer is not None:
            stack.push_async_callback(tracer.close)
        if settings.repository is None:
            classifier = Classifier(await _triton_engine(settings), settings, cores.count)
            stack.push_async_callback(classifier.close)
            catalogue = classifier.catalogue
            if settings.exit_on_error and (faults := [*catalogue.faults(), *catalogue.not_served.values()]):
                raise EngineError("; ".join(faults))
        else:
            engine = _embedded_engine(settings, cores)
            classifier = Classifier(engine, settings, cores.count)
            stack.push_async_callback(classifier.close)
            reloader = Reloader(settings.repository, engine, classifier.catalogue)
            await _load(reloader, settings)
            if settings.repository_poll_ms:
                watching = asyncio.create_task(reloader.watch(settings.repository_poll_ms / 1000))
                stack.callback(watching.cancel)
        yield Core(classifier, keys, reloader, tracer)


@asynccontextmanager
async def _open_grpc(settings: Settings) -> "AsyncIterator[GrpcServer | None]":
    """Bind gRPC's address before members are loaded; None if no port is set."""
    if settings.grpc_port is None:
        yield None
        return
    try:
        from coserve_server.transport.grpc_server import GrpcServer
    except ImportError as error:
        fault = f"grpc_port: gRPC needs all of the extra server: pip install 'coserve[server]' ({error})"
        raise SettingsError([fault]) from error
    server = GrpcServer(settings, settings.grpc_port)
    try:
        yield server
    finally:
        await server.stop(0)


async def _start_grpc(server: "GrpcServer", core: Core) -> None:
    from coserve_server.api.grpc.service import Services

    classifier = core.classifier
    reporter = Reporter(classifier.metrics, core.tracer, access_log=classifier.settings.access_log)
    await server.start(Services(classifier, core.keys, core.reloader, reporter))


def _tracer(settings: Settings) -> "Tracer | None":
    """Return the sender of traces; None without an endpoint, and then its libraries are not even imported."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from coserve_server.observability.tracing import Tracer

        return Tracer(str(settings.otlp_endpoint))
    except ImportError as error:
        fault = f"otlp_endpoint: traces need the extra otel: pip install 'coserve[otel]' ({error})"
        raise SettingsError([fault]) from error
    # Some variables are read by the import.
    except ValueError as error:
        raise SettingsError([f"otlp_endpoint: OpenTelemetry refuses its variables: {error}"]) from error


async def _triton_engine(settings: Settings) -> "TritonEngine":
    from coserve_server.engines.triton.engine import TritonEngine

    # Triton's models may change at any time, so nothing about them can prevent the start.
    return await TritonEngine.connect(settings)


def _embedded_engine(settings: Settings, cores: Cores) -> "EmbeddedEngine":
    from coserve_server.engines.embedded.options import EngineOptions
    from coserve_server.engines.factory import create_engine

    return create_engine(EngineOptions.from_settings(settings), cores)


async def _load(reloader: Reloader, settings: Settings) -> None:
    """Load the repository, which must have the default model, sound or not, if errors may end the start."""
    await reloader.start(settings.exit_on_error)
    if settings.exit_on_error is False:
        return
    catalogue = reloader.catalogue
    default = settings.default_model
    if default is not None and default not in {*catalogue.ensembles, *catalogue.rejected}:
        choice = ", ".join(catalogue.ensembles)
        raise SettingsError([f"default_model: {default!r} is not served; choose from {choice}"])


def format_url(listener: socket.socket, scheme: str) -> str:
    """Return the URL at which the socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{format_address(host, port)}"


def summarize(classifier: Classifier, address: str, grpc: "GrpcServer | None" = None) -> str:
    """Return what is served, what is not ready and why, and a command to try."""
    lines = [f"Coserve at {address} (API: {address}/docs)"]
    if grpc is not None:
        lines.append(f"  gRPC at {grpc.address}")
    for name, ensemble in classifier.catalogue.ensembles.items():
        default = " (default)" if name == classifier.settings.default_model else ""
        count = len(ensemble.members)
        where = classifier.engine.describe(ensemble)
        lines.append(f"  {name}{default}: {count} member{'s' * (count > 1)}, {where}")
    if (mirror := classifier.mirror) is not None:
        state = (
            f"{100 * classifier.settings.mirror_share:g}% of requests, when idle"
            if mirror.served
            else "not served"
        )
        lines.append(f"  mirror {mirror.name}: {state}")
    lines.extend(f"  not ready: {fault}" for fault in classifier.catalogue.faults())
    lines.extend(f"  not served: {name}" for name in classifier.catalogue.not_served)
    needed = len(classifier.catalogue.ensembles) > 1 and classifier.settings.default_model is None
    query = f"?model={next(iter(classifier.catalogue.ensembles))}" if needed else ""
    key = "-H 'X-API-Key: YOUR_KEY' " if classifier.settings.api_keys_file else ""
    lines.append(f"  try: curl {key}-F files=@photo.jpg '{address}/v1/classify{query}'")
    return "\n".join(lines)
