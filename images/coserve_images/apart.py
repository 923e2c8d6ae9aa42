"""Decode images in a process of its own.

Pillow copies decoded WebP, AVIF and HEIC in one piece. That holds the GIL for 2.3 ms per megapixel, so that
large ones would stop a server's event loop.
"""

import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from coserve_images.decode import open_image
from coserve_images.errors import ImageError, LateError
from coserve_images.preprocess import Preprocessing, preprocess, shorter_side

COPIED_FORMATS = ("WEBP", "AVIF", "HEIF")
"""Pillow's names of the formats that it copies in one piece."""

_START = (
    "import sys; sys.path[:] = sys.argv[2:]; from coserve_images.apart import answer; answer(sys.argv[1])"
)


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
    data: bytes
    how: _Input
    max_pixels: int
    deadline_ns: int

    def run(self) -> tuple[NDArray[np.float32], int] | Exception:
        try:
            with open_image(self.data, self.max_pixels, deadline_ns=self.deadline_ns) as opened:
                image, box = opened.decode(shorter_side(self.how))
            decoded_ns = time.perf_counter_ns()
            return preprocess(image, self.how, self.max_pixels, box), decoded_ns
        except (ImageError, LateError) as error:
            return error


class DecodingProcess:
    """A process that decodes and preprocesses one image at a time; it ends with this one."""

    def __init__(self) -> None:
        """Start the process, which takes some 0.3 s.

        Raises:
            UnavailableError: it cannot be started.
        """
        self._connection, other_end = Pipe()
        with other_end:
            descriptor = other_end.fileno()
            command = [sys.executable, "-c", _START, str(descriptor), *sys.path]
            try:
                # In a session of its own, it does not get this one's Ctrl+C.
                self._process = subprocess.Popen(  # noqa: S603  # a fixed script
                    command, stdin=subprocess.DEVNULL, pass_fds=[descriptor], start_new_session=True
                )
            except OSError as error:
                self._connection.close()
                raise UnavailableError(str(error)) from error
        try:
            self._connection.recv()
        except (EOFError, OSError) as error:
            self.close()
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
        job = _Job(data, _Input(*size, tuple(how.mean), tuple(how.std)), max_pixels, deadline_ns)
        try:
            self._connection.send(job)
            if not self._connection.poll(max(0, deadline_ns - time.perf_counter_ns()) / 1e9):
                self.close()
                raise LateError("the image was not decoded before the deadline")
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self.close()
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


def answer(descriptor: str) -> None:
    """Decode the images of the process that started this one, until it ends."""
    connection: Connection = Connection(int(descriptor))
    connection.send(None)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        connection.send(job.run())
