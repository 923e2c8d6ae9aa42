"""The load generator, in a separate process, so that it and its caller do not slow each other down."""

import asyncio
import multiprocessing
import os
import resource
from contextlib import suppress
from multiprocessing.connection import Connection as Pipe

import uvloop

from coserve_bench.errors import BenchError
from coserve_bench.http.connection import Address, post
from coserve_bench.http.loads import ClosedLoop, Interval, Load, Run, Target
from coserve_bench.http.traffic import Traffic, clock, closed_loop, open_loop
from coserve_bench.stopping import POLL_S, blocking_signals, is_stopped


class Generator:
    """The process as its caller sees it; a context manager."""

    def __init__(self, target: Target) -> None:
        """Start the process."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, target), daemon=True)
        with blocking_signals():
            self._process.start()
        theirs.close()

    def __enter__(self) -> "Generator":
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()

    def run(self, load: Load, interval: Interval) -> Run:
        """Apply a load and wait for its result; a signal to stop ends it early, and the result says so.

        Raises:
            BenchError: the process ended.
        """
        stopped = False
        try:
            self._pipe.send((load, interval))
            while not self._pipe.poll(POLL_S) and not stopped:
                if is_stopped():
                    stopped = True
                    self._pipe.send(None)
            run: Run = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join()
            raise BenchError(f"the load generator ended with status {self._process.exitcode}") from error
        run.stopped |= stopped
        return run


def _serve(pipe: Pipe, target: Target) -> None:
    """Apply the loads that arrive on the pipe, until it is closed; None stops the current one."""
    _allow_connections()
    address = Address.from_url(target.url, target.verify, target.certificate)
    requests = [
        post(target.url, {**target.headers, "Content-Type": kind}, body) for kind, body in target.bodies
    ]
    with suppress(EOFError, BrokenPipeError):
        while True:
            while (job := pipe.recv()) is None:
                pass
            load, interval = job
            traffic = Traffic(address, requests, target.timeout_s, interval)
            run = uvloop.run(_apply(traffic, load, pipe))
            # uvloop leaves the pipe non-blocking.
            os.set_blocking(pipe.fileno(), True)
            pipe.send(run)


def _allow_connections() -> None:
    """Raise the limit of open files, 1024 on many systems, as far as this user may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS takes no infinite limit.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _apply(traffic: Traffic, load: Load, pipe: Pipe) -> Run:
    """Apply a load until its interval is over and every request is answered, or the pipe has a message."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), stop.set)
    began = clock()
    spent = _processor_s()
    sending = asyncio.create_task(
        closed_loop(traffic, load) if isinstance(load, ClosedLoop) else open_loop(traffic, load)
    )
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({sending, stopping}, return_when=asyncio.FIRST_COMPLETED)
    run = traffic.run
    run.stopped = not sending.done()
    run.wall_s = clock() - began
    run.processor_s = _processor_s() - spent
    run.seconds = (min(clock(), traffic.ends) if run.stopped else traffic.ends) - traffic.begins
    for task in (sending, stopping):
        task.cancel()
    await asyncio.gather(sending, stopping, return_exceptions=True)
    traffic.close()
    if not run.stopped:
        sending.result()
    return run


def _processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
