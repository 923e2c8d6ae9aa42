"""`coserve triton`."""

import json
import signal
import threading
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from coserve_triton.server import Model, TritonServer

POLL_S = 0.1


def triton(
    repository: Annotated[Path, typer.Option(help="Folder of the model repository.")],
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- TRITON_OPTIONS", help="Options for tritonserver, after --."),
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

    Triton's log goes to standard error. Its addresses go to standard output once every model has loaded or
    failed. Models that failed are named there, and the others are served; if none could be loaded, the
    command ends.
    """
    from coserve_cli.errors import one_line
    from coserve_triton.errors import TritonError
    from coserve_triton.server import Ports, describe_end, run_triton

    # A signal is only noted: raised anywhere, it could be lost in an object's finaliser.
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())

    def check() -> None:
        if stop.is_set():
            raise KeyboardInterrupt

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
                # The last of several counts.
                arguments=["--exit-on-error=false", *(options or ())],
                check=check,
            ) as server,
        ):
            models = server.list_models()
            if models and not any(model.ready for model in models):
                raise TritonError(f"Triton could not load any model: {'; '.join(map(_fault, models))}")
            text = _json(server, models) if as_json else _text(server, models, repository)
            typer.echo(text)
            while server.process.poll() is None:
                stop.wait(POLL_S)
                check()
            raise TritonError(f"Triton {describe_end(server.process)}")
    except KeyboardInterrupt:
        return


def _json(server: "TritonServer", models: "Sequence[Model]") -> str:
    return json.dumps(
        {
            "http": f"{server.host}:{server.ports.http}",
            "grpc": f"{server.host}:{server.ports.grpc}",
            "metrics": f"{server.host}:{server.ports.metrics}",
            "pid": server.process.pid,
            "models": [asdict(model) for model in models],
        }
    )


def _text(server: "TritonServer", models: "Sequence[Model]", repository: Path) -> str:
    lines = [
        f"Triton serves {sum(model.ready for model in models)} models of {repository}",
        f"  HTTP     http://{server.host}:{server.ports.http}",
        f"  gRPC     {server.host}:{server.ports.grpc}",
        f"  metrics  http://{server.host}:{server.ports.metrics}/metrics",
    ]
    lines += [f"  {_fault(model)}" for model in models if not model.ready]
    return "\n".join(lines)


def _fault(model: "Model") -> str:
    version = f" version {model.version}" if model.version else ""
    return f"{model.name}{version} is not ready: {model.reason}"
