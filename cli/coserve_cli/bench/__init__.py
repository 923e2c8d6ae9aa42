"""`coserve bench`: measuring what is served."""

import typer

from coserve_cli.bench import perf_analyzer

app = typer.Typer(name="bench", help="Measure what is served.", no_args_is_help=True)
app.command("perf-analyzer")(perf_analyzer.perf_analyzer)
