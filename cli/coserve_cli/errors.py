"""Reports errors that a user can act on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer

CommandError: Any = typer.BadParameter.__mro__[2]
"""Click's base class of errors in the arguments; Typer exports only this subclass, also of its own Click."""


def report_misuse(error: Any) -> int:
    """Print an error in the arguments as one line on stderr; return the exit status."""
    # A group without a command shows its help instead.
    if type(error).show is not typer.BadParameter.show:
        error.show()
        return int(error.exit_code)
    # pydantic, with which Typer reads values, begins its messages with the kind of error.
    message = " ".join(error.format_message().replace(": Value error, ", ": ", 1).split())
    # Without the name of an option, Click's beginning says nothing, and is wrong if an option is missing.
    message = message.removeprefix("Invalid value: ")
    stop = "" if message.endswith(("?", ".")) else "."
    context = getattr(error, "ctx", None)
    hint = f" See {context.command_path} --help" if context else ""
    typer.echo(f"error: {message}{stop}{hint}", err=True)
    return int(error.exit_code)


@contextmanager
def one_line(
    *expected: type[Exception], hints: Mapping[type[Exception], str] | None = None
) -> Iterator[None]:
    """Print an expected error as one line on stderr, and exit with status 1; other errors pass through.

    Args:
        expected: base classes of a component's errors.
        hints: what to add to a kind of error, such as an option of the command that helps.

    Raises:
        typer.Exit: an expected error was printed; the status is 1.
    """
    try:
        yield
    except expected as error:
        hint = "".join(text for kind, text in (hints or {}).items() if isinstance(error, kind))
        typer.echo(f"error: {error}{hint}", err=True)
        raise typer.Exit(1) from error
