"""Serves in this process, over HTTP and gRPC."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvicorn

from coserve_server.api.reporting import Reporter
from coserve_server.core import Core, open_core
from coserve_server.errors import SettingsError
from coserve_server.pipeline.classifier import Classifier
from coserve_server.security.tls import server_context
from coserve_server.settings import Settings
from coserve_server.transport.binding import bind, format_address
from coserve_server.transport.connections import limited
from coserve_server.transport.drain import DrainingServer, grace_s

if TYPE_CHECKING:
    from coserve_server.transport.grpc_server import GrpcServer


async def serve_process(
    settings: Settings, announce: Callable[[str], None] | None = None, *, handle_signals: bool = False
) -> None:
    """Serve until the task is cancelled; see `main.serve`.

    Raises:
        StartupError: the address, a certificate, the keys, the repository or a member is not usable.
    """
    tls = server_context(settings)
    with bind(settings.host, settings.port) as listener:
        async with open_grpc(settings) as grpc, open_core(settings) as core:
            await start_grpc(grpc, core)
            address = format_url(listener, "https" if tls else "http")
            grpc_address = grpc.address if grpc else None

            def tell() -> None:
                if announce is not None:
                    announce(summarize(core.classifier, address, grpc_address))

            server = DrainingServer(
                configure(settings, core, tls),
                drain_delay_s=settings.drain_delay_ms / 1000,
                handshake_s=settings.head_timeout_ms / 1000,
                handle_signals=handle_signals,
                started=tell,
                draining=core.classifier.catalogue.drain,
                closing=(lambda: grpc.stop(grace_s(settings))) if grpc else None,
            )
            serving = asyncio.ensure_future(server.serve(sockets=[listener]))
            try:
                await asyncio.shield(serving)
            except asyncio.CancelledError:
                server.stop()
                await serving
                raise


def configure(settings: Settings, core: Core, tls: ssl.SSLContext | None) -> uvicorn.Config:
    """Return uvicorn's configuration."""
    return uvicorn.Config(
        core.build_app(),
        http=limited(settings, core.classifier.metrics),
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
        timeout_graceful_shutdown=grace_s(settings),
        timeout_keep_alive=settings.idle_timeout_ms / 1000,  # type: ignore[arg-type]  # any time will do
    )


@asynccontextmanager
async def open_grpc(settings: Settings, shared: str | None = None) -> "AsyncIterator[GrpcServer | None]":
    """Make the gRPC server, which binds its address at once; None if no port is set.

    Args:
        shared: see `GrpcServer`.
    """
    if settings.grpc_port is None:
        yield None
        return
    try:
        from coserve_server.transport.grpc_server import GrpcServer
    except ImportError as error:
        fault = f"grpc_port: gRPC needs all of the extra server: pip install 'coserve[server]' ({error})"
        raise SettingsError([fault]) from error
    server = GrpcServer(settings, settings.grpc_port, shared)
    try:
        yield server
    finally:
        await server.stop(0)


async def start_grpc(server: "GrpcServer | None", core: Core) -> None:
    """Answer calls over gRPC, if there is a server for them."""
    if server is None:
        return
    from coserve_server.api.grpc.service import Services

    classifier = core.classifier
    reporter = Reporter(classifier.metrics, core.tracer, access_log=classifier.settings.access_log)
    await server.start(Services(classifier, core.keys, core.control, reporter, core.totals))


def format_url(listener: socket.socket, scheme: str) -> str:
    """Return the URL at which the socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{format_address(host, port)}"


def summarize(classifier: Classifier, address: str, grpc_address: str | None) -> str:
    """Return what is served, what is not ready and why, and a command to try."""
    lines = [f"Coserve at {address} (API: {address}/docs)"]
    if grpc_address is not None:
        lines.append(f"  gRPC at {grpc_address}")
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
