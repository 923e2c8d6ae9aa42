"""Finding files that are no images, or cut off, without decoding all of them."""

import os

from coserve_training.data.decode import check_shape
from coserve_training.data.files import StoredFile
from coserve_training.data.lazy import open_image, reason

ENDINGS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xae\x42\x60\x82"}
"""What whole files end in: the marker EOI (ITU-T T.81, B.1.1.3), the chunk IEND (PNG, 11.2.5)."""


def fault(file: StoredFile, size: int) -> str | None:
    """What is wrong with an image that is to be resized to `size` pixels; None where nothing was found.

    Header and last bytes are read. Only where these do not show that the file is whole, it is decoded.
    """
    try:
        with open_image(file) as image:
            check_shape(image.size, size)
            ending = ENDINGS.get(str(image.format))
            if ending is None or not _ends_in(file, ending):
                image.load()
    # Pillow's plugins raise whatever their parser met: struct.error, SyntaxError, EOFError and others.
    except Exception as error:
        return reason(error)
    return None


def _ends_in(file: StoredFile, ending: bytes) -> bool:
    with file.open() as stream:
        stream.seek(-min(len(ending), stream.seek(0, os.SEEK_END)), os.SEEK_END)
        return stream.read() == ending
