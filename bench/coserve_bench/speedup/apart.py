"""Work in a process of its own."""

import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection as Pipe
from typing import Any

from coserve_bench.errors import BenchError
from coserve_export.errors import ExportError
from coserve_server.errors import StartupError
from coserve_training.errors import TrainingError

Progress = Callable[[str, int, int], None]

LIBRARIES = "coserve_bench.speedup.loading"
"""What the processes begin with; they have none of this one's threads."""


def run_apart(function: Callable[..., Any], *arguments: object, progress: Progress | None = None) -> Any:
    """Call a function in a process of its own, and give what it gives; Ctrl-C here ends it at once.

    Args:
        function: takes the arguments, and then a progress function.

    Raises:
        BenchError: it failed in a way that a user can act on, or the process was ended.
        ModuleNotFoundError: it needs a library that is not installed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([LIBRARIES])
    _start_server()
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        with ours:
            # Only now: what was interrupted before, it does not begin.
            ours.send((function, arguments))
            while isinstance(found := ours.recv(), _Step):
                if progress is not None:
                    progress(*found)
    except (EOFError, ConnectionError) as error:
        raise BenchError("a process that did part of the work was ended: is there memory enough?") from error
    except BaseException:
        process.kill()
        raise
    finally:
        process.join()
    if isinstance(found, Exception):
        raise found
    return found


class _Step(tuple[str, int, int]):
    """Progress, on its way."""


def _start_server() -> None:
    """A Ctrl-C in the terminal reaches all processes: this one decides what becomes of those it starts."""
    # It unblocks signals where it is not there yet.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    forkserver.ensure_running()
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(pipe: Pipe) -> None:
    # Semaphores that libraries make, such as tqdm's, then have no name that outlives this process.
    multiprocessing.set_start_method("fork", force=True)
    # Who asked may be gone.
    with suppress(EOFError, ConnectionError):
        function, arguments = pipe.recv()
        try:
            found = function(*arguments, lambda *step: pipe.send(_Step(step)))
        except (BenchError, StartupError, ExportError, TrainingError, MemoryError, OSError) as error:
            found = BenchError(str(error))
        except ModuleNotFoundError as error:
            found = error
        pipe.send(found)
