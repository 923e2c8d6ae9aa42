"""Reports errors that a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def one_line(*expected: type[Exception]) -> Iterator[None]:
    """Print an expected error as one line on stderr, and exit with status 1; other errors pass through.

    Args:
        expected: base classes of a component's errors.

    Raises:
        typer.Exit: an expected error was printed; the status is 1.
    """
    try:
        yield
    except expected as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
