"""Prints results, and writes them to a file."""

import json
import textwrap
from collections.abc import Iterable
from pathlib import Path

import typer


def print_results(content: object, table: Iterable[str], file: Path | None, as_json: bool) -> None:
    """Print results as JSON or as a table, and then write the JSON, so that a full disk does not lose them.

    Raises:
        coserve_bench.output.OutputError: the file cannot be written.
    """
    from coserve_bench.output import write_whole

    text = json.dumps(content, indent=2, ensure_ascii=False)
    typer.echo(text if as_json else "\n".join(table))
    if file is not None:
        write_whole(file, f"{text}\n")


def print_wrapped(text: str) -> None:
    """Print a sentence or a list in lines of at most 80 columns, which are indented after the first."""
    typer.echo(textwrap.fill(text, 80, subsequent_indent="  ", break_on_hyphens=False))


def print_list(title: str, items: Iterable[str]) -> None:
    """Print a list as `print_wrapped` does, but break lines between its items only."""
    solid = ", ".join(item.replace(" ", "\N{NO-BREAK SPACE}") for item in items)
    wrapped = textwrap.fill(f"{title}: {solid}", 80, subsequent_indent="  ", break_on_hyphens=False)
    typer.echo(wrapped.replace("\N{NO-BREAK SPACE}", " "))
