"""Zip files of images, also those with backslashes or undeclared encodings in their names."""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from coserve_training.errors import DataError

UTF8_NAME = 0x800
"""The flag that declares an entry's name as UTF-8 (APPNOTE.TXT, 4.4.4, bit 11)."""
UNICODE_PATH = 0x7075
"""The extra field with an entry's name in UTF-8 (APPNOTE.TXT, 4.6.9)."""


class Zip:
    """A zip file that each process opens for itself.

    If it were opened before a fork, all processes would share one position in the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._process = 0

    def opened(self) -> zipfile.ZipFile:
        """Return the zip file, opened by this process."""
        if self._process != os.getpid():
            self._zip = zipfile.ZipFile(self.path)
            self._process = os.getpid()
        return self._zip

    def __reduce__(self) -> tuple[type["Zip"], tuple[str]]:
        return Zip, (self.path,)

    def entries(self) -> Iterator[tuple[str, str]]:
        """Yield each entry's path with slashes, sorted, and its name in the zip. Folders end with a slash.

        Raises:
            DataError: if the zip is damaged.
        """
        try:
            infos = self.opened().infolist()
        # Damaged zips raise many types of errors: BadZipFile, struct.error, NotImplementedError and others.
        except Exception as error:
            raise DataError(f"{self.path}: damaged zip ({error})") from error
        yield from sorted((_decode_name(info).replace("\\", "/"), info.filename) for info in infos)


def is_zip(path: Path) -> bool:
    """Return whether a file is a zip by its content."""
    return zipfile.is_zipfile(path)


def _decode_name(info: zipfile.ZipInfo) -> str:
    """Decode a name. Some programs write UTF-8 without declaring it; else it is code page 437."""
    if info.flag_bits & UTF8_NAME or info.filename.isascii():
        return info.filename
    try:
        raw = info.orig_filename.encode("cp437")
        return _unicode_path(info.extra, raw) or raw.decode("utf-8")
    except (UnicodeError, struct.error):
        return info.filename


def _unicode_path(extra: bytes, raw: bytes) -> str | None:
    """Return the name in the extra field, if it belongs to the name `raw`."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == UNICODE_PATH and size > 5:
            checksum = int(struct.unpack_from("<I", extra, 5)[0])
            return extra[9 : 4 + size].decode("utf-8") if checksum == zlib.crc32(raw) else None
        extra = extra[4 + size :]
    return None
