"""`coserve bench`: measuring what is served."""

import typer

from coserve_cli.bench import perf_analyzer
from coserve_cli.bench.http import http as http_command
from coserve_cli.bench.speedup import speedup

app = typer.Typer(name="bench", help="Measure what is served.", no_args_is_help=True)
app.command("http")(http_command)
app.command("perf-analyzer")(perf_analyzer.perf_analyzer)
app.command("speedup")(speedup)
