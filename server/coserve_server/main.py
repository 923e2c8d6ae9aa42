"""Starts the server: repository, engine, application, socket."""

import asyncio
import contextlib
import gc
import math
import os
import socket
import ssl
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

from coserve_server.api.app import create_app
from coserve_server.catalogue.reload import Reloader
from coserve_server.engines.base import Engine
from coserve_server.errors import AddressError, SettingsError
from coserve_server.machine.cores import Cores, usable_cores
from coserve_server.machine.memory import return_freed_memory
from coserve_server.observability import logs
from coserve_server.pipeline.classifier import Classifier
from coserve_server.security.key_ring import KeyRing
from coserve_server.security.tls import server_context
from coserve_server.settings import Settings
from coserve_server.transport.connections import limited
from coserve_server.transport.drain import DrainingServer

if sys.platform == "win32":
    from asyncio import run as _run_loop
else:
    from uvloop import run as _run_loop

if TYPE_CHECKING:
    from coserve_server.observability.tracing import Tracer

SHUTDOWN_MARGIN_S = 2
SWITCH_INTERVAL_S = 0.0005
"""How long the event loop's thread keeps the interpreter from one that needs it: Python's own 5 ms are as
long as an inference, after which a member's thread needs it for some microseconds."""


def run(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; requests in progress then get their answers.

    Args:
        announce: is given what is served, and where, once connections are accepted.

    Raises:
        StartupError: the address, a certificate, the keys, the repository or a member is not usable.
    """
    logs.configure(settings)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return_freed_memory()
    tracer = _tracer(settings)
    tls = server_context(settings)
    keys = KeyRing(settings.api_keys_file) if settings.api_keys_file else None
    with bind(settings.host, settings.port) as listener, contextlib.suppress(KeyboardInterrupt):
        _run_loop(_serve(settings, listener, tls, keys, tracer, announce))


async def _serve(
    settings: Settings,
    listener: socket.socket,
    tls: ssl.SSLContext | None,
    keys: KeyRing | None,
    tracer: "Tracer | None",
    announce: Callable[[str], None],
) -> None:
    cores = usable_cores()
    engine, reloader = await _start_engine(settings, cores)
    classifier = Classifier(engine, settings, cores.count)
    config = uvicorn.Config(
        create_app(classifier, keys, reloader, tracer),
        http=limited(settings, classifier.metrics),
        log_level=settings.log_level,
        log_config=None,
        access_log=False,
        ws="none",
        ssl_context_factory=(lambda *_: tls) if tls else None,
        timeout_graceful_shutdown=math.ceil(settings.deadline_ms / 1000) + SHUTDOWN_MARGIN_S,
    )
    address = url(listener, "https" if tls else "http")
    server = DrainingServer(
        config,
        settings.drain_delay_ms / 1000,
        settings.head_timeout_ms / 1000,
        started=lambda: announce(summary(classifier, address)),
        draining=classifier.catalogue.drain,
    )
    watching = None
    if reloader is not None and settings.repository_poll_ms:
        watching = asyncio.create_task(reloader.watch(settings.repository_poll_ms / 1000))
    # Looking for circles of references in all that lives until the end takes 50 ms and more, again and again.
    gc.collect()
    gc.freeze()
    try:
        await server.serve(sockets=[listener])
    finally:
        if watching is not None:
            watching.cancel()
        # Python waits for every thread, and one that a library holds cannot be ended.
        last = threading.Timer(SHUTDOWN_MARGIN_S, os._exit, (0,))
        last.daemon = True
        last.start()


def _tracer(settings: Settings) -> "Tracer | None":
    """What sends traces; without an address for them its libraries are not even imported."""
    if settings.otlp_endpoint is None:
        return None
    try:
        from coserve_server.observability.tracing import Tracer
    except ImportError as error:
        fault = f"otlp_endpoint: traces need the extra otel: pip install 'coserve[otel]' ({error})"
        raise SettingsError([fault]) from error
    return Tracer(str(settings.otlp_endpoint))


async def _start_engine(settings: Settings, cores: Cores) -> tuple[Engine, Reloader | None]:
    """Start the engine; only what the chosen one needs is imported."""
    if settings.repository is None:
        from coserve_server.engines.triton.engine import TritonEngine

        # What Triton has loaded may change at any time, so nothing about it can prevent the start.
        return await TritonEngine.connect(settings), None
    from coserve_server.engines.embedded.choice import embedded_engine
    from coserve_server.ensembles.repository import read_versions

    ensembles = read_versions(settings.repository)
    if settings.default_model is not None and settings.default_model not in ensembles:
        raise SettingsError(
            [f"default_model: {settings.default_model!r} is not served; choose from {', '.join(ensembles)}"]
        )
    engine = embedded_engine(settings, cores)
    for name, versions in ensembles.items():
        await engine.replace(name, versions)
    return engine, Reloader(settings.repository, engine)


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket bound to the address, not yet accepting connections.

    Raises:
        AddressError: the address is taken, not this machine's, or needs privileges.
    """
    listener = None
    try:
        # asyncio switches Nagle's delay off only for sockets that name TCP as their protocol.
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise AddressError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


def url(listener: socket.socket, scheme: str) -> str:
    """Where the socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def summary(classifier: Classifier, address: str) -> str:
    """What is served, what keeps the rest from being served, and a command to try it."""
    lines = [f"Coserve at {address} (API: {address}/docs)"]
    for name, ensemble in classifier.catalogue.ensembles.items():
        default = " (default)" if name == classifier.settings.default_model else ""
        count, how = len(ensemble.members), classifier.engine.describe(ensemble)
        lines.append(f"  {name}{default}: {count} member{'s' * (count > 1)}, {how}")
    lines.extend(f"  not ready: {fault}" for fault in classifier.catalogue.faults())
    needed = len(classifier.catalogue.ensembles) > 1 and classifier.settings.default_model is None
    query = f"?model={next(iter(classifier.catalogue.ensembles))}" if needed else ""
    key = "-H 'X-API-Key: YOUR_KEY' " if classifier.settings.api_keys_file else ""
    lines.append(f"  try: curl {key}-F files=@photo.jpg '{address}/v1/classify{query}'")
    return "\n".join(lines)
