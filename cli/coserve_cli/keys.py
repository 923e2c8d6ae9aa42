"""`coserve keys`: the API keys of a server."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="keys",
    help="Make, list and revoke the API keys that a server asks for; running servers follow within a second.",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(help="Whose key it is: letters, digits, dots, - and _.")]
File = Annotated[
    Path,
    typer.Option("--file", envvar="COSERVE_API_KEYS_FILE", help="File of the keys; holds digests, no keys."),
]


class RoleName(str, Enum):
    """What a key allows."""

    infer = "infer"
    admin = "admin"


@app.command()
def create(
    name: Name,
    file: File,
    role: Annotated[
        RoleName, typer.Option(help="infer: ask and look; admin: load and unload models too.")
    ] = RoleName.infer,
) -> None:
    """Make a key and print it, this once; the file, made if need be, gets its digest."""
    from coserve_cli.errors import one_line
    from coserve_server.errors import StartupError
    from coserve_server.security.keys import create_key, revoke_key

    with one_line(StartupError):
        key = create_key(file, name, role.value)
        try:
            typer.echo(key)
        except OSError:
            # Nobody has seen it.
            revoke_key(file, name)
            raise


@app.command("list")
def list_(file: File) -> None:
    """List the names and roles of the keys."""
    from coserve_cli.errors import one_line
    from coserve_server.errors import StartupError
    from coserve_server.security.keys import read_keys

    with one_line(StartupError):
        for key in read_keys(file):
            typer.echo(f"{key.name}  {key.role}")


@app.command()
def revoke(name: Name, file: File) -> None:
    """Take a key out of the file, so that it opens nothing any more."""
    from coserve_cli.errors import one_line
    from coserve_server.errors import StartupError
    from coserve_server.security.keys import revoke_key

    with one_line(StartupError):
        revoke_key(file, name)
