"""Entry point of the `coserve` command; a verb's module is imported only when the verb is called."""

import errno
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from coserve_cli.errors import CommandError, report_misuse
from coserve_cli.help import PlainCommand

VERBS = {
    "divide": "Show the parameters and multiply-adds of a network and of its members.",
    "networks": "List example networks of every family, with their parameters and multiply-adds.",
    "train": "Divide a network, train its members together, and write a run folder.",
    "evaluate": "Evaluate an ensemble and its members: accuracy, likelihood, calibration, disagreement.",
    "export": "Export an ensemble to a Triton model repository, after checking its networks.",
    "tune": "Find the engine, ensemble, workers, threads and batch size that serve best on this machine.",
    "serve": "Serve ensembles over HTTP and gRPC, from a model repository or from running Triton servers.",
    "classify": "Classify images with a running server.",
    "triton": "Run NVIDIA's Triton server from the nvidia-pytriton wheel.",
    "bench": "Measure ensembles and servers.",
    "config": "List, show and check the server's settings.",
    "keys": "Create, list and revoke API keys for a server.",
    "doctor": "Show what this machine can run, and which commands lack something.",
}
"""Each verb has a module of its name, with a function of that name, or an `app` of several commands."""

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
"""Extras of the distribution that a verb may need; `doctor` needs none."""

ROAD = """\
Divide an image classifier into a co-trained ensemble and serve its members
concurrently, from a folder of labelled images to an answer:

  coserve train --data photos/ --network wide_resnet10_2 --split 2 --output run
  coserve evaluate run --calibrate
  coserve export run --repository models --name photos
  coserve serve --repository models
  coserve classify cat.jpg    # or measure: coserve bench http --image cat.jpg

coserve --help lists every command; coserve doctor shows what is installed."""


class Modules(Mapping[str, Any]):
    """The verbs as commands, each created when it is looked up."""

    def __getitem__(self, name: str) -> Any:
        if name not in VERBS:
            raise KeyError(name)
        module = import_module(f"coserve_cli.{name}")
        if hasattr(module, "app"):
            return typer.main.get_group(module.app)
        single = typer.Typer(add_completion=False)
        single.command(name, cls=PlainCommand)(getattr(module, name))
        return typer.main.get_command(single)

    def __iter__(self) -> Iterator[str]:
        return iter(VERBS)

    def __len__(self) -> int:
        return len(VERBS)


class Verbs(TyperGroup):
    """The group of all verbs, which lists them without importing them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = Modules()  # type: ignore[assignment]  # a read-only mapping

    def main(self, args: Any = None, **extra: Any) -> Any:  # type: ignore[override]  # others by keyword
        """Run the command; report in one line that it is misused, or that its output cannot be written."""
        # A terminal or a pipe of another encoding gets escapes for what it cannot show.
        if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
            sys.stdout.reconfigure(errors="backslashreplace")
        if not extra.pop("standalone_mode", True):
            return super().main(args, standalone_mode=False, **extra)
        try:
            sys.exit(super().main(args, standalone_mode=False, **extra))
        except CommandError as error:
            sys.exit(report_misuse(error))
        except typer.Abort:
            sys.exit(1)
        except OSError as error:
            # An error of a file has a file name; this one is of standard output.
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            with suppress(OSError):
                typer.echo(f"error: the output cannot be written: {error.strerror}", err=True)
            # Otherwise Python would write the rest on exit, and fail again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse empty arguments."""
        if any(not arg or (arg.startswith("--") and arg.endswith("=")) for arg in args):
            raise typer.BadParameter("an argument is empty: is a variable not set?")
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; if a library is missing, say which extras install it."""
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
        """Write the help as plain text: importing Rich takes as long as everything else."""
        super(TyperGroup, self).format_help(ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of verbs."""
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


def _print_version(wanted: bool) -> None:
    if wanted:
        from coserve_cli.version import version_lines

        typer.echo("\n".join(version_lines()))
        raise typer.Exit


app = typer.Typer(
    name="coserve",
    cls=Verbs,
    invoke_without_command=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def coserve(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_version,
            help="Show the versions of Coserve, Python and the engines, and the usable cores.",
        ),
    ] = False,
) -> None:
    """Divide an image classifier into a co-trained ensemble and serve its members concurrently."""
    if context.invoked_subcommand is None:
        typer.echo(ROAD)
