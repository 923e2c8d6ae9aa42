"""`coserve serve`."""

from pathlib import Path
from typing import Annotated

import typer


def serve(
    repository: Annotated[
        Path | None, typer.Option(help="Folder of the model repository.", show_default=False)
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="What executes the members: onnxruntime (this process) or triton (Triton servers).",
            show_default="onnxruntime",
        ),
    ] = None,
    triton_url: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT[,HOST:PORT]",
            help="gRPC addresses of the Triton servers that share the load.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 picks a free one.", show_default="8000")
    ] = None,
    default_model: Annotated[
        str | None, typer.Option(help="Ensemble that answers requests that name none.", show_default=False)
    ] = None,
    min_members: Annotated[
        int | None,
        typer.Option(
            help="Members that must answer a request in time; a reply without all is marked.",
            show_default="all",
        ),
    ] = None,
    deadline_ms: Annotated[
        float | None,
        typer.Option(help="Time to answer one request; late members are left out.", show_default="10000"),
    ] = None,
    serve_members: Annotated[
        bool,
        typer.Option("--serve-members", help="Let requests name single members too.", show_default=False),
    ] = False,
    combine: Annotated[
        str | None,
        typer.Option(help="What of the members is averaged: logits or probabilities.", show_default="logits"),
    ] = None,
) -> None:
    """Serve ensembles over HTTP: those of a model repository, or what Triton servers have loaded.

    Every option, and more (docs/serve.md), can be set as an environment variable: COSERVE_PORT and so on.
    """
    from coserve_cli.errors import one_line
    from coserve_server.errors import StartupError
    from coserve_server.main import run
    from coserve_server.settings import load_settings

    with one_line(StartupError):
        settings = load_settings(
            repository=repository,
            engine=engine,
            triton_url=triton_url,
            host=host,
            port=port,
            default_model=default_model,
            min_members=min_members,
            deadline_ms=deadline_ms,
            serve_members=serve_members or None,
            combine=combine,
        )
        run(settings, typer.echo)
