"""A page of docs/ of which a part is made from figures: what stands between its two markers."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from coserve_bench.output import write_whole

END = "<!-- end -->"


def update(page: Path, script: str, lines: Iterable[str], check: bool) -> None:
    """Write what a script made of figures into its page, or with `check` only compare.

    Args:
        script: its path below the project's root, which the opening marker names.

    Raises:
        SystemExit: the page lacks the markers, or differs and should not.
    """
    begin, old = f"<!-- begin: {script} -->", page.read_text("utf-8")
    before, begins, rest = old.partition(begin)
    _, ends, after = rest.partition(END)
    if not (begins and ends):
        raise SystemExit(f"{page} lacks {begin} or, after it, {END}")
    new = "\n".join((f"{before}{begin}\n", *lines, f"\n{END}{after}"))
    if not check:
        write_whole(page, new)
    elif new != old:
        sys.exit(f"{page}: run {Path(script).name}, its figures are not the JSON's")


def markdown(table: Iterable[list[str]]) -> Iterator[str]:
    """Lines of a table; its first row is the head."""
    for index, cells in enumerate(table):
        yield f"| {' | '.join(cells)} |"
        if index == 0:
            yield f"|{' --- |' * len(cells)}"
