"""`coserve bench`: measuring what is served."""

import typer

from coserve_cli.bench import perf_analyzer
from coserve_cli.bench.http.command import http as http_command
from coserve_cli.bench.speedup.command import speedup

app = typer.Typer(name="bench", help="Measure what is served.", no_args_is_help=True)
app.command("http")(http_command)
app.command("perf-analyzer")(perf_analyzer.perf_analyzer)
app.command("speedup")(speedup)
