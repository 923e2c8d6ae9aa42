"""Entry point of the `coserve` command; each verb imports its component only when called."""

import typer

from coserve_cli import (
    bench,
    classify,
    config,
    divide,
    evaluate,
    export,
    keys,
    networks,
    serve,
    train,
    triton,
)

app = typer.Typer(
    name="coserve",
    help="Divide an image classifier into a co-trained ensemble and serve its members concurrently.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    divide.divide,
    networks.networks,
    train.train,
    evaluate.evaluate,
    export.export,
    serve.serve,
    classify.classify,
    triton.triton,
):
    app.command()(verb)
for verbs in (bench.app, config.app, keys.app):
    app.add_typer(verbs)
