"""Options of the verbs that ask a running server."""

from pathlib import Path
from typing import Annotated

import typer

URL = "http://127.0.0.1:8000"

Url = Annotated[str, typer.Option(envvar="COSERVE_URL", help="The server's address.")]
ApiKey = Annotated[
    str | None,
    typer.Option(
        envvar="COSERVE_API_KEY",
        help="A key, where the server asks for one; other users of this machine can read it here, so "
        "rather set the variable.",
        show_default=False,
    ),
]
CaCert = Annotated[
    Path | None,
    typer.Option(
        help="PEM file of the authorities that may certify an HTTPS server.", show_default="the usual ones"
    ),
]
Certificate = Annotated[
    Path | None,
    typer.Option("--cert", help="PEM file of your own certificate, for a server that asks for one."),
]
Key = Annotated[
    Path | None, typer.Option(help="PEM file of its key.", show_default="in the certificate's file")
]
Model = Annotated[
    str | None, typer.Option(help="The ensemble to ask; may be left out where the server has a default.")
]
