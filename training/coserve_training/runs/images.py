"""The record of a run's images: hashes of those it was trained on, and of those it was tested on."""

import io
from pathlib import Path

import numpy as np

from coserve_training.data import Identities, Known
from coserve_training.errors import RunError
from coserve_training.runs.folder import write_atomically

FILE = "images.npz"


def write_known(folder: Path, known: Known) -> None:
    """Record the images in the run folder.

    Raises:
        RunError: if it cannot be written.
    """
    content = io.BytesIO()
    np.savez_compressed(
        content,
        trained_contents=known.trained.contents,
        trained_names=known.trained.names,
        tested_contents=known.tested.contents,
        tested_names=known.tested.names,
    )
    write_atomically(folder / FILE, content.getbuffer())


def read_known(folder: Path) -> Known | None:
    """Read the record; None if the run was begun by a version that kept none.

    Raises:
        RunError: if it is damaged.
    """
    file = folder / FILE
    try:
        with np.load(file) as arrays:
            return Known(
                Identities(arrays["trained_contents"], arrays["trained_names"]),
                Identities(arrays["tested_contents"], arrays["tested_names"]),
            )
    except FileNotFoundError:
        return None
    # Damaged archives raise errors of zipfile, zlib and numpy.
    except Exception as error:
        raise RunError(f"{file}: damaged ({error})") from error
