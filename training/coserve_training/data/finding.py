"""Find what `--data` names, and read it at once if it is an official CIFAR or SVHN file."""

from collections.abc import Iterator
from pathlib import Path

from coserve_training.data.cifar import read_cifar
from coserve_training.data.download import KNOWN, fetch
from coserve_training.data.split import Labelled, Progress
from coserve_training.data.svhn import read_svhn
from coserve_training.errors import DataError


def find_data(path: Path, progress: Progress | None = None) -> Iterator[tuple[Path, Labelled | None]]:
    """Yield the files and folders of a data set, with the images of official CIFAR and SVHN files.

    Args:
        path: a file, a folder, or a name in `download.KNOWN`, which is downloaded.
        progress: called with the progress of downloading.

    Raises:
        DataError: if there is no such file, it cannot be read or downloaded, or an official file is damaged.
    """
    try:
        for local in [path] if _exists(path) else fetch(str(path), progress):
            yield local, read_cifar(local) or read_svhn(local)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be read ({error.strerror or error})") from error


def _exists(path: Path) -> bool:
    """Return whether a path exists; False for the name of a published data set.

    Raises:
        DataError: if it is neither.
        OSError: if that cannot be seen.
    """
    try:
        path.stat()
    except ValueError as error:  # a null character
        raise DataError(f"{path}: cannot be read ({error})") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        if str(path) not in KNOWN:
            raise DataError(f"{path}: no such file or folder (nor one of {', '.join(KNOWN)})") from error
        return False
    return True
