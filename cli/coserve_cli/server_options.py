"""Options of the verbs that send requests to a running server."""

from pathlib import Path
from typing import Annotated

import typer

URL = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option(envvar="COSERVE_URL", help="Address of the server.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="COSERVE_API_KEY",
        help="API key, if the server needs one. Prefer the variable: other users of this machine can read "
        "the option.",
        show_default=False,
    ),
]
CaCert = Annotated[
    Path | None,
    typer.Option(
        help="PEM file of the authorities to trust for HTTPS.",
        show_default="SSL_CERT_FILE's, or else certifi's",
    ),
]
Certificate = Annotated[
    Path | None,
    typer.Option("--cert", help="PEM file of a client certificate, if the server needs one."),
]
Key = Annotated[
    Path | None,
    typer.Option(help="PEM file of the client certificate's key.", show_default="in the --cert file"),
]
Model = Annotated[str | None, typer.Option(help="The ensemble. Optional if the server has a default.")]
