"""`coserve triton`."""

import json
import signal
import threading
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from coserve_triton.server import TritonServer

POLL_S = 0.1


def triton(
    repository: Annotated[Path, typer.Option(help="Folder of the model repository.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- TRITON OPTIONS]", help="Options for tritonserver, after --."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(min=0, max=65535, help="HTTP port; 0 picks a free one.")] = 0,
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="gRPC port; 0 picks a free one.")] = 0,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Metrics port; 0 picks a free one.")
    ] = 0,
    start_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds to wait until all models are loaded.")
    ] = 300,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print addresses and models as one line of JSON.")
    ] = False,
) -> None:
    """Run NVIDIA's Triton server from the nvidia-pytriton wheel, until Ctrl-C or SIGTERM.

    Triton's log goes to standard error. Its addresses go to standard output once every model is loaded.
    """
    from coserve_cli.errors import one_line
    from coserve_triton.errors import TritonError
    from coserve_triton.server import Ports, describe_end, run_triton

    # Handle SIGTERM like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ports = Ports(http_port, grpc_port, metrics_port)
    try:
        with (
            one_line(TritonError),
            run_triton(
                repository,
                lambda line: typer.echo(line, err=True),
                host=host,
                ports=ports,
                start_timeout_s=start_timeout,
                arguments=options or (),
            ) as server,
        ):
            text = _json(server) if as_json else _text(server, repository)
            # From here on a signal is noted: raised anywhere, it could be lost in an object's finaliser.
            stop = threading.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stop.set())
            typer.echo(text)
            while server.process.poll() is None:
                if stop.wait(POLL_S):
                    raise KeyboardInterrupt
            raise TritonError(f"Triton {describe_end(server.process)}")
    except KeyboardInterrupt:
        return


def _json(server: "TritonServer") -> str:
    return json.dumps(
        {
            "http": f"{server.host}:{server.ports.http}",
            "grpc": f"{server.host}:{server.ports.grpc}",
            "metrics": f"{server.host}:{server.ports.metrics}",
            "pid": server.process.pid,
            "models": [asdict(model) for model in server.list_models()],
        }
    )


def _text(server: "TritonServer", repository: Path) -> str:
    models = server.list_models()
    lines = [
        f"Triton serves {sum(model.ready for model in models)} models of {repository}",
        f"  HTTP     http://{server.host}:{server.ports.http}",
        f"  gRPC     {server.host}:{server.ports.grpc}",
        f"  metrics  http://{server.host}:{server.ports.metrics}/metrics",
    ]
    lines += [f"  {m.name} version {m.version} is not ready: {m.reason}" for m in models if not m.ready]
    return "\n".join(lines)
