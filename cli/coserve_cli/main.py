"""Entry point of the `coserve` command; a verb's module is imported only when that verb is called."""

import errno
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

VERBS = {
    "divide": "Show parameters and multiply-adds of a network and of the ensemble it is divided into.",
    "networks": "List examples of every family of networks, with their parameters and multiply-adds.",
    "train": "Divide a network, train its members together, and leave a run folder behind.",
    "evaluate": "Score an ensemble and its members: accuracy, likelihood, calibration, disagreement.",
    "export": "Write an ensemble into a Triton model repository, once its networks have passed their checks.",
    "tune": "Find the engine, the ensemble, the threads and the batch size that serve best on this machine.",
    "serve": "Serve ensembles over HTTP: those of a model repository, or what Triton servers have loaded.",
    "classify": "Classify images with a running server.",
    "triton": "Run a Triton server, from the wheel nvidia-pytriton, until it is told to stop.",
    "bench": "Measure what is served.",
    "config": "Explain, show and check the server's settings.",
    "keys": "Make, list and revoke the API keys that a server asks for.",
}
"""Every verb has a module of its name, with a function of that name, or an `app` of several."""

EXTRAS = {
    "divide": "train",
    "networks": "train",
    "train": "train",
    "evaluate": "train",
    "export": "export",
    "tune": "server,export",
    "serve": "server",
    "classify": "client",
    "triton": "server,triton",
    "bench": "server,export,bench",
    "config": "server",
    "keys": "server",
}
"""Of the distribution, that a verb may need."""


class Modules(Mapping[str, Any]):
    """The verbs as commands, each made when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        if name not in VERBS:
            raise KeyError(name)
        module = import_module(f"coserve_cli.{name}")
        if hasattr(module, "app"):
            return typer.main.get_group(module.app)
        alone = typer.Typer(add_completion=False)
        alone.command(name)(getattr(module, name))
        return typer.main.get_command(alone)

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


class Verbs(TyperGroup):
    """Lists the verbs without importing them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = Modules()  # type: ignore[assignment]  # nothing changes them

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command; say in one line that its output cannot be written."""
        try:
            return super().main(*args, **extra)
        except OSError as error:
            # A file's error has the file's name.
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            with suppress(OSError):
                typer.echo(f"error: the output cannot be written: {error.strerror}", err=True)
            # Or Python would try to write the rest at its end, and complain anew.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give help where no verb is given; Typer's `no_args_is_help` counts on Rich for that."""
        if any(not arg or (arg.startswith("--") and arg.endswith("=")) for arg in args):
            raise typer.BadParameter("an argument is empty: is a variable not set?")
        return super().parse_args(ctx, args or ["--help"])

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; where it lacks a library, say which extras have it."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            verb = ctx.invoked_subcommand
            if verb not in EXTRAS or error.name is None or error.name.startswith("coserve"):
                raise
            install = f"pip install 'coserve[{EXTRAS[verb]}]'"
            typer.echo(
                f"error: coserve {verb} needs {error.name}, which is not installed: {install}", err=True
            )
            raise typer.Exit(1) from error

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help as plain text: importing Rich would take as long as everything else."""
        super(TyperGroup, self).format_help(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of verbs."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


app = typer.Typer(
    name="coserve",
    cls=Verbs,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def coserve() -> None:
    """Divide an image classifier into a co-trained ensemble and serve its members concurrently."""
