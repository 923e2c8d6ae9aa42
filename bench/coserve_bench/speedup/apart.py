"""Runs work in a separate process."""

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver
from multiprocessing.connection import Connection as Pipe
from typing import Any

from coserve_bench.errors import BenchError
from coserve_bench.progress import Progress
from coserve_bench.stopping import POLL_S, blocking_signals, check_stopped
from coserve_export.errors import ExportError
from coserve_server.errors import StartupError
from coserve_training.errors import TrainingError

PRELOADED = "coserve_bench.speedup.loading"
"""Imported once, by the process that the others are forked from; it has no threads."""


def run_apart(function: Callable[..., Any], *arguments: object, progress: Progress | None = None) -> Any:
    """Call a function in a separate process and return its result; a signal to stop kills that process.

    Args:
        function: called with the arguments, and then with a progress function.

    Raises:
        BenchError: the function failed with an error that a user can act on, or its process was killed.
        ModuleNotFoundError: the function needs a library that is not installed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    with blocking_signals():
        forkserver.ensure_running()
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    try:
        with ours:
            ours.send((function, arguments))
            while isinstance(result := _receive(ours), _Step):
                if progress is not None:
                    progress(*result)
    except (EOFError, ConnectionError) as error:
        raise BenchError("a process was killed, possibly because memory ran out") from error
    except BaseException:
        process.kill()
        raise
    finally:
        process.join()
    if isinstance(result, Exception):
        raise result
    return result


class _Step(tuple[str, int, int]):
    """Progress, sent over the pipe."""


def _receive(pipe: Pipe) -> Any:
    check_stopped()
    while not pipe.poll(POLL_S):
        check_stopped()
    return pipe.recv()


def _run(pipe: Pipe) -> None:
    # With fork, semaphores of libraries such as tqdm have no name that could outlive this process.
    multiprocessing.set_start_method("fork", force=True)
    # The parent may be gone.
    with suppress(EOFError, ConnectionError):
        function, arguments = pipe.recv()
        try:
            result = function(*arguments, lambda *step: pipe.send(_Step(step)))
        except (BenchError, StartupError, ExportError, TrainingError, MemoryError, OSError) as error:
            result = BenchError(str(error))
        except ModuleNotFoundError as error:
            result = error
        pipe.send(result)
