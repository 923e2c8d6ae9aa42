"""Images in zip files."""

import os
import zipfile
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from coserve_client.errors import InputError


@dataclass(frozen=True, eq=False)
class ZippedFile:
    """A file in a zip, read when it is needed."""

    archive: zipfile.ZipFile = field(repr=False)
    info: zipfile.ZipInfo

    @property
    def path(self) -> PurePosixPath:
        """Its path in the zip. Some programs write backslashes."""
        return PurePosixPath(self.info.filename.replace("\\", "/"))

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


def files_in_zip(path: str | os.PathLike[str]) -> list[ZippedFile]:
    """List a zip's files, sorted by path, without the copies of metadata that macOS adds.

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
        (file for file in files if file.path.parts[:1] != ("__MACOSX",)), key=lambda file: file.path
    )
