"""Which files of an ensemble a process has tried to serve, so that processes can be compared."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from coserve_server.catalogue.settling import Folders


@dataclass(frozen=True)
class Attempt:
    """What a process has read of an ensemble.

    Attributes:
        files: a digest of the stamps of its files; equal ones are the same files.
        read_ns: when it was read, by a clock that all processes of the machine share.
    """

    files: str
    read_ns: int

    def is_outdated_by(self, other: "Attempt") -> bool:
        """Return whether another process has read other files later."""
        return self.files != other.files and self.read_ns < other.read_ns


def make_attempt(folders: Folders, parts: Iterable[str], read_ns: int) -> Attempt:
    """Describe an attempt to serve what is made of some models.

    Args:
        folders: stamps from before the files were read.
        parts: names of the models.
    """
    stamps = [sorted(map(repr, folders.get(name, ()))) for name in sorted(parts)]
    return Attempt(hashlib.sha256(repr(stamps).encode()).hexdigest(), read_ns)
