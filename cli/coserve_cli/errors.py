"""How the command line reports errors a user can act on."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def one_line(*expected: type[Exception]) -> Iterator[None]:
    """Print an expected error as one line on stderr and exit with status 1; let all others pass.

    Args:
        expected: base classes of the component's error tree.

    Raises:
        typer.Exit: with status 1, after an expected error.
    """
    try:
        yield
    except expected as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
