"""Read an image file with limits on the work that a parser does."""

import time
from io import BytesIO
from typing import IO

from coserve_images.errors import ImageError, LateError

FREE_READS = 50_000
BYTES_PER_READ = 1024
"""Pillow's parsers take microseconds per read, so a file may have `FREE_READS` parts and one more for each
`BYTES_PER_READ` bytes. libpng writes 8 KiB per chunk."""
MAX_PASSES = 4
"""How many times a parser may read a file's bytes: AVIF and HEIC are read once, JPEG and PNG about twice."""


class Reader:
    """A seekable file that stops a parser at its deadline, or if it reads too much or in too small parts."""

    def __init__(self, source: bytes | IO[bytes], deadline_ns: int | None = None) -> None:
        """Read from bytes or a file, until `deadline_ns` on the clock of `time.perf_counter_ns`."""
        self._file = BytesIO(source) if isinstance(source, bytes) else source
        self._deadline_ns = deadline_ns
        self.size = len(source) if isinstance(source, bytes) else self._file.seek(0, 2)
        self._file.seek(0)
        self._reads_left = FREE_READS + self.size // BYTES_PER_READ
        self._bytes_left = MAX_PASSES * self.size + 2**16

    def read(self, size: int = -1, /) -> bytes:
        """Read at most `size` bytes; all that follow if it is negative.

        Raises:
            ImageError: the parser reads too much.
            LateError: the deadline has passed.
        """
        self._reads_left -= 1
        if self._reads_left < 0:
            raise ImageError("the file has too many small parts")
        if self._deadline_ns is not None and time.perf_counter_ns() > self._deadline_ns:
            raise LateError("the image was not decoded before the deadline")
        data = self._file.read(size)
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise ImageError("the file's parts overlap")
        return data

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Move to a position, as a file does."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position, as a file does."""
        return self._file.tell()

    def getvalue(self) -> bytes:
        """Return the whole file; the position stays."""
        if isinstance(self._file, BytesIO):
            return self._file.getvalue()
        position = self._file.tell()
        self._file.seek(0)
        data = self._file.read()
        self._file.seek(position)
        return data
