"""`coserve bench`."""

import typer

from coserve_cli.bench.http import http
from coserve_cli.bench.perf_analyzer import perf_analyzer
from coserve_cli.bench.speedup import speedup
from coserve_cli.help import PlainCommand, PlainGroup

app = typer.Typer(
    name="bench",
    cls=PlainGroup,
    help="Measure ensembles and servers.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command(cls=PlainCommand)(http)
app.command(cls=PlainCommand)(perf_analyzer)
app.command(cls=PlainCommand)(speedup)
