"""Shows progress on stderr, if it is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bars() -> Iterator[Callable[[str, int, int], None] | None]:
    """Yield a function that shows the current work, the steps done and the steps in all.

    Yield None without a terminal. A bar is removed after its last step, so that another library's bar may
    follow.
    """
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress, TaskID

    with Progress(console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def update(work: str, done: int, total: int) -> None:
            if work not in tasks:
                tasks[work] = bar.add_task(work, total=total)
                bar.start()
            bar.update(tasks[work], completed=done)
            if done == total:
                bar.remove_task(tasks.pop(work))
                bar.stop()

        yield update


@contextmanager
def status_line() -> Iterator[Callable[[str], None]]:
    """Yield a function that takes the current work."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("checking") as status:
        yield status.update
