"""`coserve serve`."""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer


def serve(
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="COSERVE_CONFIG",
            help="TOML file of settings (docs/reference/configuration.md).",
            show_default=False,
        ),
    ] = None,
    repository: Annotated[
        Path | None, typer.Option(help="Folder of the model repository.", show_default=False)
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            help="Engine that runs the members: onnxruntime, openvino (both in this process), or triton.",
            show_default="onnxruntime",
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="N[,N]",
            help="GPUs, by number, for the members of the engine onnxruntime, each on a stream of its own.",
            show_default="cores",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Processes that share the cores or GPUs, each with copies of the members.",
            show_default="as the machine suggests",
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
    grpc_port: Annotated[
        int | None,
        typer.Option(
            help="Port for gRPC, beside HTTP; 0 picks a free one. Without it there is no gRPC.",
            show_default=False,
        ),
    ] = None,
    default_model: Annotated[
        str | None, typer.Option(help="Ensemble for requests that do not name one.", show_default=False)
    ] = None,
    exit_on_error: Annotated[
        str | None,
        typer.Option(
            metavar="true|false",
            help="Whether the start fails if any ensemble cannot be loaded; by default, only if none can.",
            show_default=False,
        ),
    ] = None,
    min_members: Annotated[
        int | None,
        typer.Option(
            help="Minimum number of members that must answer in time; replies that lack members say so.",
            show_default="all",
        ),
    ] = None,
    deadline_ms: Annotated[
        float | None,
        typer.Option(
            help="Milliseconds to answer a request; late members are left out.", show_default="10000"
        ),
    ] = None,
    early_stop: Annotated[
        str | None,
        typer.Option(
            metavar="off|loaded|always",
            help="Ask members one after another until an image's answer is confident enough: while images "
            "wait for the engine (loaded), or always.",
            show_default="off",
        ),
    ] = None,
    serve_members: Annotated[
        bool | None,
        typer.Option(
            "--serve-members/--no-serve-members",
            help="Also serve single members under their names.",
            show_default=False,
        ),
    ] = None,
    page: Annotated[
        bool | None,
        typer.Option(
            "--page/--no-page", help="Show browsers a page at / to try the server.", show_default="page"
        ),
    ] = None,
    api_keys_file: Annotated[
        Path | None,
        typer.Option(
            help="File of API keys (coserve keys); requests must send one of them.", show_default=False
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM file of the server's certificate, for HTTPS.", show_default=False)
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(help="PEM file of the certificate's private key.", show_default=False)
    ] = None,
    allow_public: Annotated[
        bool | None,
        typer.Option(
            "--allow-public/--no-allow-public",
            help="Allow a public address without API keys.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve ensembles over HTTP and gRPC, from a model repository or from running Triton servers.

    Every option can also be set as an environment variable, such as COSERVE_PORT, or in the --config file;
    coserve config list shows these and further settings. Options override variables, which override the file.
    """
    from coserve_cli.process import (
        end_on_sigterm,
        exit_in_time,
        open_streams,
        print_summary,
        use_utf8,
    )

    use_utf8()
    end_on_sigterm()
    # Before anything opens a file.
    open_streams()
    # gRPC writes what it finds wrong with clients to standard error, not to the log. It reads this on import.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from coserve_cli.errors import one_line
    from coserve_server.errors import AddressError, StartupError
    from coserve_server.machine.interpreter import freeze_objects, tune_interpreter
    from coserve_server.machine.open_files import raise_limit
    from coserve_server.main import count_connections
    from coserve_server.main import serve as serve_forever
    from coserve_server.observability import logs
    from coserve_server.settings import load_settings

    if sys.platform == "win32":
        from asyncio import run
    else:
        from uvloop import run

    def announce(summary: str) -> None:
        freeze_objects()
        print_summary(summary)

    taken = "; choose another address with --host, --port or --grpc-port"
    with exit_in_time(), one_line(StartupError, hints={AddressError: taken}), suppress(KeyboardInterrupt):
        settings = load_settings(
            config,
            repository=repository,
            engine=engine,
            gpus=gpus,
            workers=workers,
            triton_url=triton_url,
            host=host,
            port=port,
            grpc_port=grpc_port,
            default_model=default_model,
            exit_on_error=exit_on_error,
            min_members=min_members,
            deadline_ms=deadline_ms,
            early_stop=early_stop,
            serve_members=serve_members,
            page=page,
            api_keys_file=api_keys_file,
            tls_certificate=tls_certificate,
            tls_key=tls_key,
            allow_public=allow_public,
        )
        logs.configure(settings)
        tune_interpreter()
        # Workers inherit it.
        raise_limit(count_connections(settings))
        run(serve_forever(settings, announce, handle_signals=True))
