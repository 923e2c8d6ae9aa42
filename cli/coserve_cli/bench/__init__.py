"""`coserve bench`."""

import typer

from coserve_cli.bench.http import http
from coserve_cli.bench.perf_analyzer import perf_analyzer
from coserve_cli.bench.speedup import speedup

app = typer.Typer(name="bench", help="Measure ensembles and servers.", no_args_is_help=True)
app.command()(http)
app.command()(perf_analyzer)
app.command()(speedup)
