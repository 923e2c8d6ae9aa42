"""Images in zip files."""

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from coserve_client.errors import InputError

LITTER = frozenset(
    {"@eadir", "#recycle", "#snapshot", "@recycle", "$recycle.bin", "system volume information", "lost+found"}
    | {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__pycache__", "network trash folder"}
    | {"temporary items", "~snapshot", "@tmp"}
)
"""Names, in lower case, of entries that systems and devices leave behind. Their content is never read."""
UTF8_NAME = 0x800
"""The flag that declares an entry's name as UTF-8 (APPNOTE.TXT, 4.4.4, bit 11)."""
UNICODE_PATH = 0x7075
"""The extra field with an entry's name in UTF-8 (APPNOTE.TXT, 4.6.9)."""


@dataclass(frozen=True, eq=False)
class ZippedFile:
    """A file in a zip, read when it is needed."""

    archive: zipfile.ZipFile = field(repr=False)
    info: zipfile.ZipInfo

    @property
    def path(self) -> PurePosixPath:
        """Its path in the zip. Some programs write backslashes."""
        return PurePosixPath(_decode_name(self.info).replace("\\", "/"))

    @property
    def size(self) -> int:
        """Its decompressed size in bytes."""
        return self.info.file_size

    def read(self) -> bytes:
        """Return its content.

        Raises:
            InputError: it is encrypted or damaged.
        """
        try:
            return self.archive.read(self.info)
        # Damaged entries raise many types of errors: BadZipFile, zlib.error, RuntimeError and others.
        except Exception as error:
            raise InputError(f"cannot read {self}: {error}") from error

    def __str__(self) -> str:
        return f"{self.archive.filename}/{self.path}"


def is_litter(name: str) -> bool:
    """Return whether an entry is hidden, or left behind by a system."""
    return name.startswith((".", "__MACOSX")) or name.casefold() in LITTER


def files_in_zip(path: str | os.PathLike[str]) -> list[ZippedFile]:
    """List a zip's files, sorted by path, without hidden ones and those of systems.

    Raises:
        InputError: the zip cannot be read.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {os.fsdecode(path)}: {reason}") from error
    files = [ZippedFile(archive, info) for info in archive.infolist() if not info.is_dir()]
    return sorted(
        (file for file in files if not any(map(is_litter, file.path.parts))), key=lambda file: file.path
    )


def _decode_name(info: zipfile.ZipInfo) -> str:
    """Decode a name as training does. Some programs write UTF-8 without declaring it; else it is cp437."""
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
