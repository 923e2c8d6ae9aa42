"""MATLAB files, in which SVHN and ImageNet's class numbers come."""

from typing import Any

from coserve_training.data.files import StoredFile
from coserve_training.errors import DataError


def read_matlab(file: StoredFile, *variables: str) -> dict[str, Any]:
    """Read variables as arrays, dimensions of length 1 left out.

    Raises:
        DataError: when the file cannot be read, is damaged or lacks one of them.
    """
    from scipy.io import loadmat  # half a second that most data sets do not need

    try:
        with file.open() as stream:
            content = loadmat(stream, squeeze_me=True, variable_names=variables)
    # scipy raises whatever its parser met: struct.error, zlib.error, TypeError and others.
    except Exception as error:
        raise DataError(f"{file.name}: not a MATLAB file, or damaged ({error})".replace("\n", " ")) from error
    if missing := [name for name in variables if name not in content]:
        raise DataError(f"{file.name}: has no variable {', '.join(missing)}")
    return {name: content[name] for name in variables}
