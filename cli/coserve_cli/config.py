"""`coserve config`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from coserve_cli.help import PlainCommand, PlainGroup

app = typer.Typer(
    name="config",
    cls=PlainGroup,
    help="List, show and check the server's settings.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list", cls=PlainCommand)
def list_() -> None:
    """List every setting with its type or values, its default and its meaning."""
    from coserve_server.configuration import describe

    for setting in describe():
        default = f", default {setting.default}" if setting.default else ""
        typer.echo(f"{setting.name} ({setting.type}{default})\n    {setting.description}")


@app.command(cls=PlainCommand)
def show(
    config: Annotated[
        Path | None, typer.Option(envvar="COSERVE_CONFIG", help="TOML file of settings.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the settings that a server started here would use, and where each one comes from."""
    from coserve_cli.errors import one_line
    from coserve_server.configuration import resolve
    from coserve_server.errors import StartupError
    from coserve_server.settings.load import find_ignored_variables

    for note in find_ignored_variables():
        typer.echo(f"warning: {note}", err=True)
    with one_line(StartupError):
        settings = resolve(config)
    if as_json:
        content = {one.name: {"value": one.value, "source": one.source} for one in settings}
        typer.echo(json.dumps(content, indent=2))
        return
    names = max(len(one.name) for one in settings)
    for one in settings:
        value = "" if one.value is None else one.value
        value = value if isinstance(value, str) else json.dumps(value)
        typer.echo(f"{one.name:{names}}  {one.source:11}  {value}".rstrip())


@app.command(cls=PlainCommand)
def check(file: Annotated[Path, typer.Argument(help="TOML file of settings.")]) -> None:
    """Check a file of settings and the files it names; exit with status 1 if there is a fault.

    Environment variables count as in coserve serve --config FILE. Members are not loaded.
    """
    from coserve_server.configuration import find_faults

    found = list(find_faults(file))
    for fault in found:
        typer.echo(f"error: {fault}", err=True)
    if found:
        raise typer.Exit(1)
    typer.echo(f"{file}: no fault")
