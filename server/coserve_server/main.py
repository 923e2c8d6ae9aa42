"""Starts the server: repository, engine, application, socket."""

import contextlib
import logging
import math
import socket
from collections.abc import Callable

import uvicorn

from coserve_server.api.app import create_app
from coserve_server.classify import Classifier
from coserve_server.cores import usable_cores
from coserve_server.engines.onnxruntime import OnnxRuntimeEngine
from coserve_server.errors import AddressError
from coserve_server.repository import read_repository
from coserve_server.settings import Settings

SHUTDOWN_MARGIN_S = 2


def run(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; requests in progress then get their answers.

    Args:
        announce: is given what is served, and where, once connections are accepted.

    Raises:
        StartupError: the address, the repository or a member is not usable.
    """
    logging.basicConfig(format="%(levelname)s:     %(message)s")
    logging.getLogger("coserve_server").setLevel(settings.log_level.upper())
    cores = usable_cores()
    with bind(settings.host, settings.port) as listener:
        engine = OnnxRuntimeEngine(read_repository(settings.repository), cores)
        classifier = Classifier(engine, settings, cores.count)
        config = uvicorn.Config(
            create_app(classifier),
            log_level=settings.log_level,
            timeout_graceful_shutdown=math.ceil(settings.deadline_ms / 1000) + SHUTDOWN_MARGIN_S,
        )
        listener.listen(config.backlog)
        announce(summary(classifier, cores.count, url(listener)))
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket bound to the address, not yet accepting connections.

    Raises:
        AddressError: the address is taken, not this machine's, or needs privileges.
    """
    listener = None
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise AddressError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listener


def url(listener: socket.socket) -> str:
    """Where the socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def summary(classifier: Classifier, cores: int, address: str) -> str:
    """What is served, and a command to try it."""
    lines = [f"Coserve at {address} (API: {address}/docs)"]
    for name, ensemble in classifier.ensembles.items():
        how = classifier.engine.describe(ensemble)
        default = " (default)" if name == classifier.settings.default_model else ""
        count = len(ensemble.members)
        lines.append(f"  {name}{default}: {count} member{'s' * (count > 1)}, {how} ({cores} cores usable)")
    needed = len(classifier.ensembles) > 1 and classifier.settings.default_model is None
    query = f"?model={next(iter(classifier.ensembles))}" if needed else ""
    lines.append(f"  try: curl -F files=@photo.jpg '{address}/v1/classify{query}'")
    return "\n".join(lines)
