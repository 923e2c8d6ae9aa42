"""Decode images in a process of its own.

Pillow copies decoded WebP, AVIF and HEIC in one piece, which holds the GIL for 2.3 ms per megapixel. It frees
the pixels of any image in one piece, which holds it for some 0.3 ms per megapixel. So large images would stop
a server's event loop.
"""

import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from coserve_images.decode import OpenedImage, open_image
from coserve_images.errors import ImageError, LateError
from coserve_images.preprocess import Preprocessing, Resizing, preprocess, resized_size, shorter_side

COPIED_FORMATS = ("WEBP", "AVIF", "HEIF")
"""Pillow's names of the formats that it copies in one piece."""
COPIED_PIXELS = 2 * 2**20
"""The most pixels of an image of `COPIED_FORMATS` that hold other threads up only briefly."""
FREED_PIXELS = 16 * 2**20
"""The most pixels that an image of any format may be decoded or resized to, likewise."""

_START = (
    "import sys; sys.path[:] = sys.argv[2:]; from coserve_images.apart import answer; answer(sys.argv[1])"
)
_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**20), "MALLOC_TRIM_THRESHOLD_": str(2**22)}
"""Make glibc return freed pixels to the system, as mallopt(3) explains."""


def holds_up(opened: OpenedImage, how: Resizing) -> bool:
    """Return whether decoding and resizing an image in this process would stop its other threads for long."""
    most = COPIED_PIXELS if opened.format in COPIED_FORMATS else FREED_PIXELS
    # Long and thin images have more pixels when their shorter side has been enlarged.
    resized = math.prod(resized_size(*opened.stored_size, how))
    return opened.count_pixels(shorter_side(how)) > most or resized > FREED_PIXELS


class UnavailableError(Exception):
    """No process can be started."""


@dataclass(frozen=True)
class _Input:
    """What a network takes; see `Preprocessing`."""

    height: int
    width: int
    resize_size: int | None
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class _Job:
    how: _Input
    max_pixels: int
    deadline_ns: int

    def run(self, data: bytes) -> tuple[NDArray[np.float32], int] | Exception:
        try:
            with open_image(data, self.max_pixels, deadline_ns=self.deadline_ns) as opened:
                image, box = opened.decode(shorter_side(self.how))
            decoded_ns = time.perf_counter_ns()
            return preprocess(image, self.how, self.max_pixels, box), decoded_ns
        except (ImageError, LateError) as error:
            return error


class DecodingProcess:
    """A process that decodes and preprocesses one image at a time; it ends with this one."""

    def __init__(self, deadline_ns: int) -> None:
        """Start the process, which takes some 0.3 s.

        Args:
            deadline_ns: when to give up, on the clock of `time.perf_counter_ns`.

        Raises:
            UnavailableError: it cannot be started.
            LateError: the deadline has passed.
        """
        self._connection, other_end = Pipe()
        with other_end:
            descriptor = other_end.fileno()
            command = [sys.executable, "-c", _START, str(descriptor), *sys.path]
            try:
                # In a session of its own, it does not get this one's Ctrl+C.
                self._process = subprocess.Popen(  # noqa: S603  # a fixed script
                    command,
                    env=_MEMORY | os.environ,
                    stdin=subprocess.DEVNULL,
                    pass_fds=[descriptor],
                    start_new_session=True,
                )
            except OSError as error:
                self._connection.close()
                raise UnavailableError(str(error)) from error
        try:
            with self._ended_at(deadline_ns):
                self._connection.recv()
        except (EOFError, OSError) as error:
            raise UnavailableError(f"the process ended with {self._process.returncode}") from error

    @property
    def alive(self) -> bool:
        """Return whether the process can decode an image."""
        return not self._connection.closed and self._process.poll() is None

    def prepare(
        self, data: bytes, how: Preprocessing, max_pixels: int, deadline_ns: int
    ) -> tuple[NDArray[np.float32], int]:
        """Decode and preprocess an image.

        Args:
            data: the file.
            how: what the network takes.
            max_pixels: the limit on width times height.
            deadline_ns: when to end the process, on the clock of `time.perf_counter_ns`.

        Returns:
            The tensor, FP32 `[3, height, width]`, and when the image was decoded.

        Raises:
            ImageError: as for `decode`, or the process ended.
            LateError: the deadline has passed.
        """
        size = (how.height, how.width, how.resize_size, how.interpolation)
        job = _Job(_Input(*size, tuple(how.mean), tuple(how.std)), max_pixels, deadline_ns)
        try:
            with self._ended_at(deadline_ns):
                self._connection.send(job)
                # Pickled, the file would be copied, which holds the GIL.
                self._connection.send_bytes(data)
                answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ImageError("decoding it ended a process, perhaps for lack of memory") from error
        if isinstance(answer, Exception):
            raise answer
        tensor, decoded_ns = answer
        return tensor, decoded_ns

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    @contextmanager
    def _ended_at(self, deadline_ns: int) -> Iterator[None]:
        """End the process at a deadline, which ends any wait for it; also end it if the exchange fails."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(max(0, deadline_ns - time.perf_counter_ns()) / 1e9, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        # After any fault, the next answer would not be the next image's.
        except BaseException as error:
            if late.is_set() and isinstance(error, EOFError | OSError):
                raise LateError("the image was not decoded before the deadline") from error
            self.close()
            raise
        finally:
            timer.cancel()
            timer.join()
            if late.is_set():
                self.close()


def answer(descriptor: str) -> None:
    """Decode the images of the process that started this one, until it ends."""
    connection: Connection = Connection(int(descriptor))
    connection.send(None)
    with suppress(EOFError):
        while True:
            job = connection.recv()
            # A name for the file would keep it until the next one.
            connection.send(job.run(connection.recv_bytes()))
