"""From a request's encoded images to the batch that the members take."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np

from coserve_server.engines.base import Batch
from coserve_server.errors import BadImageError, DeadlineError
from coserve_server.images.decode import EncodedImage, decode
from coserve_server.images.preprocess import Preprocessing, preprocess
from coserve_server.observability.record import ImageTimes, current

SMALL_BYTES = 2**14
SMALL_PIXELS = 2**14
"""A sole image within both, before and after resizing, is prepared on the event loop."""


class Preparation:
    """Decodes and preprocesses images on threads of its own, at most `cores` at once."""

    def __init__(self, cores: int, max_pixels: int) -> None:
        self._threads = ThreadPoolExecutor(cores, "prepare")
        self._max_pixels = max_pixels

    async def prepare(
        self, images: Sequence[EncodedImage], how: Preprocessing, expires: float
    ) -> tuple[Batch, float, float]:
        """The batch, and the milliseconds spent on decoding and on preprocessing, summed over the images.

        Args:
            expires: when to stop waiting, on the clock of `loop.time()`.

        Raises:
            BadImageError: one cannot be decoded; the text says which.
            DeadlineError: it took too long.
        """
        if len(images) == 1 and len(images[0].data) <= SMALL_BYTES:
            # Changing threads costs more than such an image. What is wrong with another, a thread finds out.
            with suppress(BadImageError):
                tensor, own = _prepare(images[0], 0, how, min(SMALL_PIXELS, self._max_pixels))
                current().prepared = (own,)
                return tensor[np.newaxis], *own.ms
        loop = asyncio.get_running_loop()
        jobs = [
            loop.run_in_executor(self._threads, _prepare, image, index, how, self._max_pixels)
            for index, image in enumerate(images)
        ]
        try:
            prepared = await asyncio.wait_for(asyncio.gather(*jobs), expires - loop.time())
        except asyncio.TimeoutError as error:
            raise DeadlineError("the images were not decoded before the deadline") from error
        finally:
            for job in jobs:
                job.cancel()
        tensors, times = zip(*prepared, strict=True)
        current().prepared = times
        decode_ms, preprocess_ms = map(sum, zip(*(one.ms for one in times), strict=True))
        return np.stack(tensors), decode_ms, preprocess_ms

    def close(self) -> None:
        """End the threads; what waits for one is dropped."""
        self._threads.shutdown(cancel_futures=True)


def _prepare(
    image: EncodedImage, index: int, how: Preprocessing, max_pixels: int
) -> tuple[Batch, ImageTimes]:
    began = time.perf_counter_ns()
    try:
        decoded = decode(image.data, max_pixels)
        halfway = time.perf_counter_ns()
        tensor = preprocess(decoded, how, max_pixels)
    except BadImageError as error:
        name = f"image {index}" + (f" ({image.filename})" if image.filename else "")
        raise BadImageError(f"{name}: {error}") from error
    return tensor, ImageTimes(began, halfway, time.perf_counter_ns())
