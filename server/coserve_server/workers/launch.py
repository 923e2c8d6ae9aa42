"""Starts the process of a worker."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from coserve_server.machine.plan import Slice
from coserve_server.workers.channel import send_frame

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Assignment:
    """What a worker has to know.

    Attributes:
        number: the worker's, from 1.
        settings: values of the worker's own settings, by name.
        part: what the worker gets of the machine.
        url: where clients reach the server.
        grpc_address: `HOST:PORT` for gRPC, which all workers share; None for no gRPC.
        unloaded: names of ensembles that clients have unloaded.
    """

    number: int
    settings: dict[str, object]
    part: Slice
    url: str
    grpc_address: str | None
    unloaded: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Launched:
    """A process that has been started.

    Attributes:
        control: socket for calls; it is closed when the process ends.
        connections: socket over which the process receives connections.
    """

    process: "subprocess.Popen[bytes]"
    control: socket.socket
    connections: socket.socket


def launch(assignment: Assignment) -> Launched:
    """Start a worker.

    Raises:
        OSError: the system starts no more processes.
    """
    # Where this process found its modules.
    variables = {"PYTHONPATH": os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)}
    if sys.flags.utf8_mode:
        variables["PYTHONUTF8"] = "1"
    control, its_control = socket.socketpair()
    connections, its_connections = socket.socketpair()
    with its_control, its_connections:
        ends = (its_control.fileno(), its_connections.fileno())
        try:
            process = subprocess.Popen(  # noqa: S603  # this program
                [sys.executable, str(FOLDER), *map(str, ends)],
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                pass_fds=ends,
                # A terminal's Ctrl-C is for the parent, which stops the workers in order.
                start_new_session=True,
            )
        except OSError:
            control.close()
            connections.close()
            raise
    # It may have ended already, which the caller will notice.
    with suppress(OSError):
        send_frame(control, assignment)
    connections.setblocking(False)
    return Launched(process, control, connections)


def describe_status(status: int) -> str:
    """Return how a process ended."""
    if status >= 0:
        return f"ended with status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    hint = " (the kernel sends it when memory runs out)" if -status == signal.SIGKILL else ""
    return f"was ended by {name}{hint}"
