"""Progress on stderr, shown only where stderr is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None] | None]:
    """Yield a function to tell what is done, steps done and steps in all; None where no terminal shows it.

    A bar goes away with its last step, so that another library's bar may follow.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    with Progress(console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
                bar.start()
            bar.update(tasks[what], completed=done)
            if done == total:
                bar.remove_task(tasks.pop(what))
                bar.stop()

        yield update


@contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """Yield a function to tell what is being done."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("checking") as status:
        yield status.update
