"""Start a Triton server, wait until it serves, and stop it."""

import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from coserve_triton.errors import TritonError
from coserve_triton.installation import Installation, find_installation
from coserve_triton.output import Output, first_lines
from coserve_triton.staging import EXIT_TIMEOUT_S, Staging

POLL_S = 0.05
STARTS = 3
"""Attempts to start Triton in all, if each ends with `_LockLostError`."""
SERVICES = ("http", "grpc", "metrics")
OWN_OPTIONS = {
    **{f"--{service}-port": f"give --{service}-port before the --" for service in SERVICES},
    **{f"--{service}-address": "give --host before the --" for service in SERVICES},
    **{f"--allow-{service}": "Triton is ready once this service answers" for service in ("http", "metrics")},
}
"""Options of `tritonserver` that would hide the server from this module, and what to do instead."""


class _LockLostError(TritonError):
    """Triton ended while loading, because its Python backend did not get a lock within a second.

    The cause is a busy machine, not the models.
    """


@dataclass(frozen=True)
class Ports:
    """TCP ports of Triton's three services; 0 picks a free one."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0


@dataclass(frozen=True)
class Model:
    """A version of a model; `reason` tells why it is not ready. One that was never tried has no version."""

    name: str
    version: str
    ready: bool
    reason: str


@dataclass(frozen=True)
class TritonServer:
    """A Triton server that runs on this machine.

    Attributes:
        host: the address it listens on.
        ports: the ports in use; none is 0.
        process: the server; it leads the process group of the models' processes.
        failures: why models were not even tried when the server started, by name.
    """

    host: str
    ports: Ports
    process: "subprocess.Popen[str]"
    failures: Mapping[str, str] = field(default_factory=dict)

    def list_models(self) -> list[Model]:
        """List the versions of the models that Triton was to load, sorted by name.

        Raises:
            TritonError: the server does not answer.
        """
        try:
            status, body = self.request("POST", self.ports.http, "/v2/repository/index")
        except (OSError, http.client.HTTPException) as error:
            raise TritonError(f"Triton does not answer: {error}") from error
        if status != 200:
            raise TritonError(f"Triton answers {status}: {body}")
        # Models without a state were not to be loaded, or failed before that.
        models = [
            Model(
                m["name"],
                m.get("version", ""),
                m.get("state") == "READY",
                first_lines(m.get("reason") or self.failures.get(m["name"], "")),
            )
            for m in json.loads(body)
            if "state" in m or m["name"] in self.failures
        ]
        return sorted(models, key=lambda model: (model.name, model.version))

    def serves(self) -> bool:
        """Return whether its HTTP and metrics services answer."""
        try:
            answers = [
                self.request("GET", self.ports.http, "/v2/health/live"),
                self.request("GET", self.ports.metrics, "/metrics"),
            ]
        except (OSError, http.client.HTTPException):
            return False
        return all(status == 200 for status, _ in answers)

    def request(self, method: str, port: int, path: str) -> tuple[int, str]:
        """Send a request without a body; return the status and body of the answer."""
        with closing(http.client.HTTPConnection(self.host, port, timeout=5)) as connection:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()


@contextmanager
def run_triton(
    repository: Path,
    log: Callable[[str], None],
    *,
    host: str,
    ports: Ports,
    start_timeout_s: float = 300,
    arguments: Sequence[str] = (),
    check: Callable[[], None] = lambda: None,
) -> Iterator[TritonServer]:
    """Run Triton's server while the context lasts; it is stopped even if this process is killed.

    Args:
        repository: folder of the model repository.
        log: called with every line that the server prints, in another thread.
        start_timeout_s: time for all models to load.
        arguments: more options for `tritonserver`, other than `OWN_OPTIONS`.
        check: called many times a second while the models load; it may raise to give up.

    Raises:
        TritonError: there is no such folder, a port is taken, the address is not this machine's, an option
            cannot be passed, or Triton is not installed or does not start; the text has Triton's own reason.
    """
    for option in (argument.partition("=")[0] for argument in arguments):
        if option in OWN_OPTIONS:
            raise TritonError(f"{option} cannot be passed to tritonserver: {OWN_OPTIONS[option]}")
    if not repository.is_dir():
        raise TritonError(f"{repository} is not a folder")
    installation = find_installation()
    ports = _choose_ports(host, ports)
    with ExitStack() as stack:
        for left in reversed(range(STARTS)):
            try:
                running = _run(installation, repository, log, host, ports, start_timeout_s, arguments, check)
                server = stack.enter_context(running)
                break
            except _LockLostError as error:
                if not left:
                    raise
                log(f"{error}; starting it again")
        yield server


@contextmanager
def _run(
    installation: Installation,
    repository: Path,
    log: Callable[[str], None],
    host: str,
    ports: Ports,
    start_timeout_s: float,
    arguments: Sequence[str],
    check: Callable[[], None],
) -> Iterator[TritonServer]:
    with ExitStack() as stack:
        try:
            staging = stack.enter_context(Staging(installation, repository))
            options = _options(staging, host, ports)
            process = _start([str(installation.server), *options, *arguments], installation)
        except OSError as error:
            raise TritonError(f"Triton cannot be started: {error}") from error
        staging.entrust(process.pid)
        output = stack.enter_context(Output(process, log))
        stack.callback(process.wait)
        stack.callback(staging.release)
        server = TritonServer(host, ports, process)
        _wait_until_it_serves(server, output, start_timeout_s, check)
        yield replace(server, failures=output.failures())


def describe_end(process: "subprocess.Popen[str]") -> str:
    """Say how a process ended."""
    status = process.returncode
    return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"


def _choose_ports(host: str, ports: Ports) -> Ports:
    """Choose a free port for each 0, and check that all ports can be listened on."""
    if ":" in host:
        raise TritonError(f"cannot listen on {host}: Triton takes names and IPv4 addresses here")
    with ExitStack() as stack:
        chosen = []
        for port in (ports.http, ports.grpc, ports.metrics):
            try:
                listener = stack.enter_context(socket.create_server((host, port)))
            except OSError as error:
                reason = error.strerror or error
                raise TritonError(f"cannot listen on {host} port {port}: {reason}") from error
            chosen.append(listener.getsockname()[1])
    return Ports(*chosen)


def _options(staging: Staging, host: str, ports: Ports) -> list[str]:
    services = [
        option
        for service, port in (("http", ports.http), ("grpc", ports.grpc), ("metrics", ports.metrics))
        for option in (f"--{service}-address={host}", f"--{service}-port={port}")
    ]
    return [
        f"--model-repository={staging.repository}",
        f"--backend-directory={staging.backends}",
        f"--backend-config=python,shm-region-prefix-name={staging.shm_prefix}",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        # Auto-completion starts every model once more; repositories written for coserve are complete.
        "--disable-auto-complete-config",
        *services,
    ]


def _start(command: Sequence[str], installation: Installation) -> "subprocess.Popen[str]":
    folders = [*map(str, installation.library_path), os.environ.get("LD_LIBRARY_PATH", "")]
    return subprocess.Popen(  # noqa: S603  # the user's own machine and options
        command,
        # ONNX Runtime 1.29 and later report to Microsoft unless told not to.
        env={"ORT_DISABLE_TELEMETRY": "1"}
        | os.environ
        | {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, folders))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def _wait_until_it_serves(
    server: TritonServer, output: Output, timeout_s: float, check: Callable[[], None]
) -> None:
    deadline = time.monotonic() + timeout_s
    while not server.serves():
        if server.process.poll() is not None:
            reason = f"Triton {describe_end(server.process)}: {output.reason()}"
            raise _LockLostError(reason) if output.lock_lost else TritonError(reason)
        if time.monotonic() > deadline:
            raise TritonError(f"Triton did not load its models within {timeout_s:g} seconds")
        check()
        time.sleep(POLL_S)
