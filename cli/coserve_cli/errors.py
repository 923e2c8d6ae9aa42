"""Reports errors that a user can act on."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import typer


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
