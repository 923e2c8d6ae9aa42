"""Process-wide changes by `coserve serve`; programs that call `coserve_server.serve` are left alone."""

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import typer

EXIT_GRACE_S = 2
PRINT_PATIENCE_S = 1

logger = logging.getLogger(__name__)


def end_on_sigterm() -> None:
    """End the process on SIGTERM while the server does not handle it.

    A container's first process has no default action.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


def use_utf8() -> None:
    """Start the command again in UTF-8 mode if the locale's encoding is another: models' names are UTF-8."""
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606  # this command


def open_streams() -> None:
    """Open missing standard streams, whose numbers sockets would take; write any name in any encoding."""
    missing = [number for number in range(3) if not _is_open(number)]
    for _ in missing:
        # The lowest free number, so the missing one.
        os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def print_summary(text: str) -> None:
    """Print a text, unless nobody reads it: serving does not depend on that."""
    from coserve_server.machine.streams import write

    if sys.stdout is None or write(sys.stdout, f"{text}\n", PRINT_PATIENCE_S):
        return
    logger.warning("standard output cannot be written; serving all the same")
    # Otherwise Python would write the rest on exit, and change the status.
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def exit_in_time() -> Iterator[None]:
    """End the process soon after the block, with its status, even if a library's thread never ends."""
    status = 1
    try:
        yield
        status = 0
    except typer.Exit as stop:
        status = stop.exit_code
        raise
    finally:
        timer = threading.Timer(EXIT_GRACE_S, _exit, (status,))
        timer.daemon = True
        timer.start()


def _exit(status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(status)
