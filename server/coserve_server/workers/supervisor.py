"""The parent: starts workers, divides connections among them, replaces those that end, and stops all."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from coserve_server.errors import StartupError
from coserve_server.machine.plan import Slice
from coserve_server.settings import Settings
from coserve_server.transport.binding import bind, format_address, reserve
from coserve_server.transport.drain import grace_s
from coserve_server.workers.distributor import Distributor
from coserve_server.workers.launch import Assignment
from coserve_server.workers.plan import divide
from coserve_server.workers.whole import Whole
from coserve_server.workers.worker import State, Worker

logger = logging.getLogger(__name__)

MAX_FAILED_STARTS = 5
"""Replacements of one worker that may fail in turn before the server ends."""
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
"""Pauses before a replacement; they double while workers end within `STEADY_S`."""
STEADY_S = 60.0
SLOW_START_S = 60.0
"""Time after which the log says that a worker is still starting; then it waits twice as long each time."""
LEAVE_S = 2.0
"""Time for the clients of a worker that leaves to go to others with their next requests."""
MARGIN_S = 5.0
"""Time beyond the grace period after which a worker that stops is killed."""


async def supervise(
    settings: Settings,
    slices: Sequence[Slice],
    announce: Callable[[str], None] | None = None,
    *,
    handle_signals: bool = False,
) -> None:
    """Serve with one worker per slice until the task is cancelled; see `main.serve`.

    Raises:
        StartupError: the address is not usable, a worker does not start, or ends again and again.
    """
    with bind(settings.host, settings.port) as listener, _reserve(settings) as grpc_address:
        host, port = listener.getsockname()[:2]
        url = f"{'https' if settings.tls_certificate else 'http'}://{format_address(host, port)}"
        assignments = []
        for index, part in enumerate(slices):
            own = divide(settings, part, index, len(slices))
            values = {name: getattr(own, name) for name in Settings.model_fields}
            assignments.append(Assignment(index + 1, values, part, url, grpc_address))
        await _Supervisor(settings, assignments, listener).run(announce, handle_signals=handle_signals)


@contextmanager
def _reserve(settings: Settings) -> Iterator[str | None]:
    """Keep the port for gRPC, and give its numeric address; None if there is none."""
    if settings.grpc_port is None:
        yield None
        return
    with reserve(settings.host, settings.grpc_port) as reserved:
        yield format_address(*reserved.getsockname()[:2])


class _Supervisor:
    """Keeps as many workers as there are assignments."""

    def __init__(
        self, settings: Settings, assignments: Sequence[Assignment], listener: socket.socket
    ) -> None:
        self._assignments = assignments
        self._drain_delay_s = settings.drain_delay_ms / 1000
        self._longest_end_s = grace_s(settings) + MARGIN_S
        self._workers: list[Worker] = []
        tls = settings.tls_certificate is not None
        self._distributor = Distributor(listener, self._workers, tls=tls)
        self._whole = Whole(
            self._workers,
            len(assignments),
            lambda: self._distributor.refused,
            polls=settings.repository_poll_ms > 0,
        )
        self._finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._stopping: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def run(self, announce: Callable[[str], None] | None, *, handle_signals: bool) -> None:
        """Serve until a signal, an error, or the task is cancelled."""
        try:
            first = await self._start_all()
            self._distributor.start()
            keeping = [asyncio.ensure_future(self._keep(worker)) for worker in self._workers]
            for task in keeping:
                task.add_done_callback(self._note_kept)
            with self._signals() if handle_signals else contextlib.nullcontext():
                if announce is not None:
                    announce(_summarize(first, self._assignments))
                try:
                    await asyncio.shield(self._finished)
                except asyncio.CancelledError:
                    self._stop(0)
                    await asyncio.shield(self._finished)
                    raise
                finally:
                    for task in keeping:
                        task.cancel()
        finally:
            for worker in self._workers:
                worker.kill()
            await asyncio.gather(*(worker.close() for worker in self._workers))

    async def _start_all(self) -> Worker:
        """Start all workers at once; the first fault is the server's. Return the first worker."""
        starting = [asyncio.ensure_future(self._start(one)) for one in self._assignments]
        try:
            return (await asyncio.gather(*starting))[0]
        finally:
            for task in starting:
                task.cancel()

    async def _start(self, assignment: Assignment) -> Worker:
        """Start a worker, and let it serve.

        Raises:
            StartupError: it is not usable.
        """
        assigned = replace(assignment, unloaded=self._whole.unloaded)
        worker = Worker(assigned, {**self._whole.handlers, "returned": self._distributor.take_back})
        self._workers.append(worker)
        warning = asyncio.ensure_future(_warn_of_slow_start(worker))
        try:
            await worker.start()
            if self._stopping is not None:
                worker.drain()
            await self._whole.catch_up(worker)
        except StartupError:
            worker.kill()
            await self._bury(worker)
            raise
        finally:
            warning.cancel()
        return worker

    async def _bury(self, worker: Worker) -> None:
        await asyncio.wait([worker.ended])
        self._distributor.take_back(worker.reclaim())
        await worker.close()
        self._workers.remove(worker)
        self._whole.bury(worker)

    async def _keep(self, worker: Worker) -> None:
        """Replace a worker whenever it ends or leaves, until replacements fail again and again."""
        loop = asyncio.get_running_loop()
        pause_s = FIRST_PAUSE_S
        while True:
            began = loop.time()
            await worker.left.wait()
            if self._stopping is not None:
                return
            pause_s = FIRST_PAUSE_S if loop.time() - began > STEADY_S else pause_s
            task = asyncio.ensure_future(self._end(worker))
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            failures = 0
            while True:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                if self._stopping is not None:
                    return
                try:
                    worker = await self._start(self._assignments[worker.number - 1])
                except StartupError as error:
                    if self._stopping is not None:
                        return
                    failures += 1
                    logger.error("worker %d could not be replaced: %s", worker.number, error)
                    if failures == MAX_FAILED_STARTS:
                        self._stop(0, StartupError(f"{failures} replacements of a worker failed; {error}"))
                        return
                else:
                    self._whole.replacements += 1
                    logger.info("worker %d was replaced", worker.number)
                    break

    def _note_kept(self, task: asyncio.Task[None]) -> None:
        """End the server if a bug keeps it from replacing a worker."""
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("workers cannot be replaced any more", exc_info=error)
            self._stop(0, StartupError("workers cannot be replaced any more; the log says why"))

    async def _end(self, worker: Worker) -> None:
        """See a worker to its end: one that leaves still has clients for a while."""
        if worker.ended.done():
            logger.error("worker %d %s; a new one takes its place", worker.number, worker.describe_end())
        else:
            logger.info("worker %d leaves; a new one takes its place", worker.number)
            await asyncio.wait([worker.ended], timeout=max(self._drain_delay_s, LEAVE_S))
            # Then it takes connections again, until all end.
            if self._stopping is not None and not worker.ended.done():
                return
            worker.stop()
            await asyncio.wait([worker.ended], timeout=self._longest_end_s)
            worker.kill()
        await self._bury(worker)

    def _stop(self, delay_s: float, error: Exception | None = None) -> None:
        """Begin to stop, if that has not begun."""
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self._finish(delay_s, error))
            self._stopping.add_done_callback(self._note_finished)

    async def _finish(self, delay_s: float, error: Exception | None) -> None:
        """Drain all workers, and end them."""
        for worker in self._workers:
            worker.drain()
        await asyncio.sleep(delay_s)
        self._distributor.stop()
        for worker in self._workers:
            if worker.state is State.STARTING:
                worker.kill()
            worker.stop()
        if self._workers:
            await asyncio.wait([worker.ended for worker in self._workers], timeout=self._longest_end_s)
        if error is not None:
            raise error

    def _note_finished(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self._finished.done():
            return
        if (error := task.exception()) is not None:
            self._finished.set_exception(error)
        else:
            self._finished.set_result(None)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Stop on SIGINT and SIGTERM; a second one ends the process, and with it the workers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            loop.add_signal_handler(number, self._handle, number)
        try:
            yield
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler)

    def _handle(self, number: signal.Signals) -> None:
        if self._stopping is not None:
            os._exit(128 + number)
        self._stop(self._drain_delay_s if number == signal.SIGTERM else 0)


async def _warn_of_slow_start(worker: Worker) -> None:
    """Warn, ever more rarely, while a worker starts. It is not killed: large ensembles take long to load."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    waited_s = SLOW_START_S
    while True:
        await asyncio.sleep(waited_s)
        waited_s = loop.time() - began
        logger.warning(
            "worker %d has been starting for %.0f s, and takes no connections before it has loaded all "
            "ensembles; does the repository's file system answer?",
            *(worker.number, waited_s),
        )


def _summarize(worker: Worker, assignments: Sequence[Assignment]) -> str:
    """Return the summary of one worker, which serves what all do, with a line about the others."""
    *lines, last = worker.summary.splitlines()
    parts = [one.part for one in assignments]
    if any(part.gpus for part in parts):
        each = "; ".join(f"GPU {', '.join(map(str, part.gpus))}" for part in parts)
    else:
        each = f"cores: {', '.join(str(part.cores.count) for part in parts)}"
    return "\n".join([*lines, f"  {len(parts)} workers ({each}); the above is the first one's", last])
