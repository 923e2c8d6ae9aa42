"""MATLAB files, the format of SVHN and of ImageNet's class numbers."""

from typing import Any

from coserve_training.data.files import StoredFile
from coserve_training.errors import DataError


def read_matlab(file: StoredFile, *variables: str) -> dict[str, Any]:
    """Read variables as arrays, without dimensions of length 1.

    Raises:
        DataError: if the file cannot be read, is damaged or lacks a variable.
    """
    from scipy.io import loadmat  # takes half a second, which most data sets do not need

    try:
        with file.open() as stream:
            content = loadmat(stream, squeeze_me=True, variable_names=variables)
    # scipy raises many types of errors: struct.error, zlib.error, TypeError and others.
    except Exception as error:
        raise DataError(f"{file.name}: not a MATLAB file, or damaged ({error})".replace("\n", " ")) from error
    if missing := [name for name in variables if name not in content]:
        raise DataError(f"{file.name}: has no variable {', '.join(missing)}")
    return {name: content[name] for name in variables}
