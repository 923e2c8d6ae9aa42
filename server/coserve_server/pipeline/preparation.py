"""Turns a request's encoded images into the tensor that the members take."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from coserve_images.decode import decode
from coserve_images.errors import ImageError, LateError
from coserve_images.preprocess import preprocess, shorter_side
from coserve_server.engines.base import Images
from coserve_server.ensembles.preprocessing import Preprocessing
from coserve_server.errors import BadImageError, DeadlineError
from coserve_server.observability.record import ImageTimes, Record

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

    def __init__(self, cores: int, max_pixels: int) -> None:
        self._threads = ThreadPoolExecutor(cores, "prepare")
        self._max_pixels = max_pixels

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
            DeadlineError: it took too long.
        """
        if len(images) == 1 and _is_cheap(images[0].data):
            # Changing threads costs more than such an image. If this fails, a thread reports why.
            with suppress(BadImageError):
                tensor, times = _prepare(images[0], 0, how, min(SMALL_PIXELS, self._max_pixels), deadline_ns)
                record.prepared = (times,)
                return tensor[np.newaxis]
        loop = asyncio.get_running_loop()
        jobs = [
            loop.run_in_executor(self._threads, _prepare, image, index, how, self._max_pixels, deadline_ns)
            for index, image in enumerate(images)
        ]
        left_s = (deadline_ns - time.perf_counter_ns()) / 1e9
        try:
            prepared = await asyncio.wait_for(asyncio.gather(*jobs), left_s)
        except asyncio.TimeoutError as error:
            raise DeadlineError("the images were not decoded before the deadline") from error
        finally:
            for job in jobs:
                job.cancel()
        tensors, record.prepared = zip(*prepared, strict=True)
        return np.stack(tensors)

    def close(self) -> None:
        """End the threads; drop waiting images."""
        self._threads.shutdown(cancel_futures=True)


def _is_cheap(data: bytes) -> bool:
    """Return whether an image is small, and has no colour profile, which takes up to 50 ms to read."""
    return len(data) <= SMALL_BYTES and b"acsp" not in data and b"iCCP" not in data


def _prepare(
    image: EncodedImage, index: int, how: Preprocessing, max_pixels: int, deadline_ns: int
) -> tuple[Images, ImageTimes]:
    """Return one image's tensor `[3, H, W]` and its times."""
    began = time.perf_counter_ns()
    try:
        decoded = decode(image.data, max_pixels, shorter_side=shorter_side(how), deadline_ns=deadline_ns)
        halfway = time.perf_counter_ns()
        tensor = preprocess(decoded, how, max_pixels)
    except ImageError as error:
        name = f"image {index}" + (f" ({image.filename})" if image.filename else "")
        raise BadImageError(f"{name}: {error}") from error
    except LateError as error:
        raise DeadlineError("the images were not decoded before the deadline") from error
    return tensor, ImageTimes(began, halfway, time.perf_counter_ns())
