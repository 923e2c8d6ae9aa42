"""SVHN's cropped digits, format 2 (http://ufldl.stanford.edu/housenumbers/)."""

from pathlib import Path

import numpy as np

from coserve_training.data.files import StoredFile
from coserve_training.data.matlab import read_matlab
from coserve_training.data.split import Labelled
from coserve_training.errors import DataError

SPLITS = {"train_32x32.mat": "train", "extra_32x32.mat": "train", "test_32x32.mat": "test"}


def read_svhn(path: Path) -> Labelled | None:
    """Read one of SVHN's files, or a folder's training and test files.

    The extra training images are easier, and seven times as many. They are read only if `path` is their file.

    Returns:
        Labels, and the splits that were found; None if `path` is something else.

    Raises:
        DataError: if a file is damaged.
    """
    if path.is_dir():
        paths = [path / name for name in SPLITS if not name.startswith("extra") and (path / name).is_file()]
    else:
        paths = [path] if path.name in SPLITS and path.is_file() else []
    if not paths:
        return None
    splits = {}
    for file in paths:
        content = read_matlab(StoredFile(str(file)), "X", "y")
        images = content["X"]
        digits = content["y"]
        if not isinstance(images, np.ndarray) or not isinstance(digits, np.ndarray):
            raise DataError(f"{file}: X and y must be arrays of numbers")
        if images.dtype != np.uint8 or images.shape != (32, 32, 3, digits.size):
            raise DataError(
                f"{file}: X is {images.dtype} {list(images.shape)} for {digits.size} labels, "
                f"not uint8 [32, 32, 3, {digits.size}]"
            )
        if not np.isin(digits, range(1, 11)).all():
            raise DataError(f"{file}: y must hold labels from 1 to 10")
        # The label of digit 0 is 10.
        classes = digits.ravel().astype(np.int64) % 10
        splits[SPLITS[file.name]] = (np.ascontiguousarray(images.transpose(3, 0, 1, 2)), classes)
    return [str(digit) for digit in range(10)], splits
