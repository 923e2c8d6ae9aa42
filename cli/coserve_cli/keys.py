"""`coserve keys`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from coserve_cli.help import PlainCommand, PlainGroup

app = typer.Typer(
    name="keys",
    cls=PlainGroup,
    help="Create, list and revoke API keys for a server. Running servers apply changes within a second.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="Name of the key: letters, digits, dots, - and _.")]
File = Annotated[
    Path,
    typer.Option("--file", envvar="COSERVE_API_KEYS_FILE", help="File of the keys; it holds their digests."),
]


class RoleName(str, Enum):
    """The calls that a key allows."""

    infer = "infer"
    admin = "admin"


@app.command(cls=PlainCommand)
def create(
    name: Name,
    file: File,
    role: Annotated[
        RoleName, typer.Option(help="infer: classify and read; admin: also load and unload models.")
    ] = RoleName.infer,
) -> None:
    """Create a key and print it once. Only its digest is stored in the file, which is created if needed."""
    from coserve_cli.errors import one_line
    from coserve_server.errors import StartupError
    from coserve_server.security.keys import create_key, revoke_key

    with one_line(StartupError):
        key = create_key(file, name, role.value)
        try:
            typer.echo(key)
        except OSError:
            # The key was not shown, so nobody can use it.
            revoke_key(file, name)
            raise


@app.command("list", cls=PlainCommand)
def list_(file: File) -> None:
    """List the names and roles of the keys."""
    from coserve_cli.errors import one_line
    from coserve_server.errors import StartupError
    from coserve_server.security.keys import read_keys

    with one_line(StartupError):
        for key in read_keys(file):
            typer.echo(f"{key.name}  {key.role}")


@app.command(cls=PlainCommand)
def revoke(name: Name, file: File) -> None:
    """Remove a key from the file, so that servers reject it."""
    from coserve_cli.errors import one_line
    from coserve_server.errors import StartupError
    from coserve_server.security.keys import revoke_key

    with one_line(StartupError):
        revoke_key(file, name)
