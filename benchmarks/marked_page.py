"""Update the generated part of a page in docs/, which stands between two markers."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from coserve_bench.output import write_whole

ROOT = Path(__file__).resolve().parent.parent
END = "<!-- end -->"


def page_options(description: str | None, results: str, page: str) -> argparse.ArgumentParser:
    """Return a parser of the options that all scripts have which write a page from results.

    Args:
        description: the script's docstring.
        results: the default folder of the results, below the project's root.
        page: the default page, likewise.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=ROOT / results, help="folder of the results")
    parser.add_argument("--page", type=Path, default=ROOT / page, help="Markdown file to update")
    parser.add_argument("--check", action="store_true", help="only compare, and fail if the page differs")
    return parser


def update(page: Path, script: str, lines: Iterable[str], check: bool) -> None:
    """Write generated lines into a page, or with `check` only compare.

    Args:
        page: the Markdown file.
        script: the generator's path below the project's root, which the opening marker names.
        lines: the new content between the markers.
        check: leave the page as it is, and fail if its content differs.

    Raises:
        SystemExit: if the page lacks the markers, or with `check` differs.
    """
    begin = f"<!-- begin: {script} -->"
    old = page.read_text("utf-8")
    before, begins, rest = old.partition(begin)
    _, ends, after = rest.partition(END)
    if not (begins and ends):
        raise SystemExit(f"{page} lacks {begin} or, after it, {END}")
    new = "\n".join((f"{before}{begin}\n", *lines, f"\n{END}{after}"))
    if not check:
        write_whole(page, new)
    elif new != old:
        sys.exit(f"{page} differs from the results: run {Path(script).name}")


def markdown(table: Iterable[list[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table, whose first row is the header."""
    for index, cells in enumerate(table):
        yield f"| {' | '.join(cells)} |"
        if index == 0:
            yield f"|{' --- |' * len(cells)}"
