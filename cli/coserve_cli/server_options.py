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


def client_certificate(certificate: Path | None, key: Path | None) -> Path | tuple[Path, Path] | None:
    """Return the client certificate as the client takes it.

    Raises:
        typer.BadParameter: there is a key without a certificate.
    """
    if certificate is None and key is not None:
        raise typer.BadParameter("--key needs --cert")
    return (certificate, key) if certificate and key else certificate
