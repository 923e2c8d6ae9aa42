"""Turns a request's encoded images into the tensor that the members take."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from coserve_images.apart import DecodingProcess, UnavailableError, holds_up
from coserve_images.decode import OpenedImage, open_image
from coserve_images.errors import ImageError, LateError
from coserve_images.preprocess import preprocess, shorter_side
from coserve_server.engines.base import Images
from coserve_server.ensembles.preprocessing import Preprocessing
from coserve_server.errors import BadImageError, DeadlineError, TooManyPixelsError
from coserve_server.observability.record import ImageTimes, Record

T = TypeVar("T")
LATE = "the images were not decoded before the deadline"
DEPTH = 2
"""A request's images per thread: while one is prepared, the next one waits behind it."""
SMALL_BYTES = 2**14
SMALL_PIXELS = 2**14
"""A single image within both limits, before and after resizing, is prepared on the event loop."""


@dataclass(frozen=True)
class EncodedImage:
    """An image file as it was sent; `filename` is None if the request has none."""

    data: bytes
    filename: str | None = None


class Preparation:
    """Decodes and preprocesses images on its own threads, at most `cores` at once."""

    def __init__(self, cores: int, max_pixels: int, max_request_pixels: int) -> None:
        """Limit the pixels of each image, and of all images of a request."""
        self._threads = ThreadPoolExecutor(cores, "prepare")
        self._processes = _Processes()
        self._cores = cores
        self._max_pixels = max_pixels
        self._max_request_pixels = max_request_pixels

    async def prepare(
        self, record: Record, images: Sequence[EncodedImage], how: Preprocessing, deadline_ns: int
    ) -> Images:
        """Decode and preprocess images; note the times in the record.

        Args:
            deadline_ns: when to stop waiting, on the clock of `time.perf_counter_ns`.

        Returns:
            FP32 `[N, 3, H, W]`.

        Raises:
            BadImageError: an image cannot be decoded; the text says which.
            TooManyPixelsError: the images have too many pixels in total; none has been decoded.
            DeadlineError: it took too long.
        """
        if len(images) == 1 and _is_cheap(images[0].data):
            # Changing threads costs more than such an image. If this fails, a thread reports why.
            with suppress(BadImageError):
                job = _Job(
                    images[0], 0, how, min(SMALL_PIXELS, self._max_pixels), deadline_ns, self._processes
                )
                tensor, times = job.prepare()
                record.prepared = (times,)
                return tensor[np.newaxis]
        # The threads write into the batch's own memory: stacking dozens of tensors here would hold others up.
        batch = np.empty((len(images), 3, how.height, how.width), np.float32)
        jobs = [
            _Job(image, index, how, self._max_pixels, deadline_ns, self._processes)
            for index, image in enumerate(images)
        ]
        if len(jobs) * self._max_pixels > self._max_request_pixels:
            await self._check_pixels(jobs, deadline_ns)
        steps = [partial(job.prepare_into, row) for job, row in zip(jobs, batch, strict=True)]
        record.prepared = await self._run(steps, deadline_ns)
        return batch

    async def _check_pixels(self, jobs: Sequence["_Job"], deadline_ns: int) -> None:
        """Add up the pixels that the images' headers announce."""
        chunks = [jobs[start :: self._cores] for start in range(min(self._cores, len(jobs)))]
        counts = await self._run([partial(_count_pixels, chunk) for chunk in chunks], deadline_ns)
        if (pixels := sum(counts)) > self._max_request_pixels:
            raise TooManyPixelsError(
                f"{len(jobs)} images of {pixels} pixels in total, more than the {self._max_request_pixels} "
                "allowed in a request; send fewer at once"
            )

    async def _run(self, steps: Sequence[Callable[[], T]], deadline_ns: int) -> list[T]:
        """Run steps on the threads, and return their results.

        The threads take steps in turn, so a request has only a few among them: others do not wait for all.
        """
        loop = asyncio.get_running_loop()
        results: dict[int, T] = {}
        left = iter(enumerate(steps))

        async def run_some() -> None:
            for index, step in left:
                results[index] = await loop.run_in_executor(self._threads, step)

        running = [asyncio.ensure_future(run_some()) for _ in range(min(len(steps), DEPTH * self._cores))]
        left_s = (deadline_ns - time.perf_counter_ns()) / 1e9
        try:
            await asyncio.wait_for(asyncio.gather(*running), left_s)
        except asyncio.TimeoutError as error:
            raise DeadlineError(LATE) from error
        finally:
            for task in running:
                task.cancel()
        return [results[index] for index in range(len(steps))]

    def close(self) -> None:
        """End the threads and processes; drop waiting images."""
        self._threads.shutdown(cancel_futures=True)
        self._processes.close()


def _is_cheap(data: bytes) -> bool:
    """Return whether an image is small, and has no colour profile, which takes up to 50 ms to read."""
    return len(data) <= SMALL_BYTES and b"acsp" not in data and b"iCCP" not in data


class _Processes:
    """Processes that decode images, at most as many as there are threads that use them at once."""

    def __init__(self) -> None:
        self._idle: list[DecodingProcess] = []

    @contextmanager
    def borrow(self, deadline_ns: int) -> Iterator[DecodingProcess]:
        """Lend a process; raise UnavailableError if none can be started, LateError if not in time."""
        process = self._take(deadline_ns)
        try:
            yield process
        finally:
            if process.alive:
                self._idle.append(process)

    def _take(self, deadline_ns: int) -> DecodingProcess:
        # Another thread may take the last one between a look and a pop.
        with suppress(IndexError):
            while not (process := self._idle.pop()).alive:
                process.close()
            return process
        return DecodingProcess(deadline_ns)

    def close(self) -> None:
        """End the processes."""
        while self._idle:
            self._idle.pop().close()


class _Job:
    """One image on its way to a tensor."""

    def __init__(
        self,
        image: EncodedImage,
        index: int,
        how: Preprocessing,
        max_pixels: int,
        deadline_ns: int,
        processes: _Processes,
    ) -> None:
        self._image = image
        self._index = index
        self._how = how
        self._max_pixels = max_pixels
        self._deadline_ns = deadline_ns
        self._processes = processes
        self._opened: OpenedImage | None = None
        self._opening_ns = 0

    def open(self) -> OpenedImage:
        """Read the image's header, once."""
        if self._opened is None:
            began = time.perf_counter_ns()
            with self._translated():
                self._opened = open_image(self._image.data, self._max_pixels, deadline_ns=self._deadline_ns)
            self._opening_ns = time.perf_counter_ns() - began
        return self._opened

    def prepare(self) -> tuple[Images, ImageTimes]:
        """Return the image's tensor `[3, H, W]` and its times."""
        opened = self.open()
        # Without a reference, the decoded pixels do not outlive this step.
        self._opened = None
        began = time.perf_counter_ns() - self._opening_ns
        if holds_up(opened, self._how):
            lent = self._processes.borrow(self._deadline_ns)
            with suppress(UnavailableError), self._translated(), lent as process:
                tensor, halfway = process.prepare(
                    self._image.data, self._how, self._max_pixels, self._deadline_ns
                )
                return tensor, ImageTimes(began, halfway, time.perf_counter_ns())
        with self._translated():
            with opened:
                image, box = opened.decode(shorter_side(self._how))
            halfway = time.perf_counter_ns()
            tensor = preprocess(image, self._how, self._max_pixels, box)
        return tensor, ImageTimes(began, halfway, time.perf_counter_ns())

    def prepare_into(self, row: Images) -> ImageTimes:
        """Write the image's tensor into `row`, `[3, H, W]`, and return its times."""
        tensor, times = self.prepare()
        row[:] = tensor
        return times

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn errors of decoding into errors that name the image."""
        try:
            yield
        except ImageError as error:
            name = f"image {self._index}" + (f" ({self._image.filename})" if self._image.filename else "")
            raise BadImageError(f"{name}: {error}") from error
        except LateError as error:
            raise DeadlineError(LATE) from error


def _count_pixels(jobs: Sequence[_Job]) -> int:
    return sum(math.prod(job.open().stored_size) for job in jobs)
