"""Find damaged and truncated image files without decoding all of them."""

import os

from coserve_training.data.decode import check_shape
from coserve_training.data.files import StoredFile
from coserve_training.data.lazy import describe_error, open_image

ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xae\x42\x60\x82"}
"""The last bytes of complete files: the marker EOI (ITU-T T.81, B.1.1.3), the chunk IEND (PNG, 11.2.5)."""


def find_fault(file: StoredFile, size: int) -> str | None:
    """Return why an image cannot be resized to `size` pixels; None if no fault is found.

    The header and the last bytes are read. Only if these do not prove it complete is the image decoded.
    """
    try:
        with open_image(file) as image:
            check_shape(image.stored_size, size)
            ending = ENDINGS.get(str(image.format))
            if ending is None or not _ends_in(file, ending):
                image.decode(size)
    # Opening a file or a member of a zip fails with errors of many types.
    except Exception as error:
        return describe_error(error)
    return None


def _ends_in(file: StoredFile, ending: bytes) -> bool:
    with file.open() as stream:
        stream.seek(-min(len(ending), stream.seek(0, os.SEEK_END)), os.SEEK_END)
        return stream.read() == ending
