"""Decode image files to upright 8-bit sRGB."""

import math
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, NamedTuple, cast

from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from coserve_images.bounds import (
    MAX_PIXELS,
    TIFF_HEADS,
    check_file,
    check_opened,
    check_pixels,
    check_scans,
)
from coserve_images.colour import to_rgb
from coserve_images.depth import scale_transparency
from coserve_images.errors import ImageError, LateError, UnknownFormatError
from coserve_images.formats import FORMATS, is_heic, register_heic, turns_itself
from coserve_images.orientation import TRANSPOSED, Box, read_orientation, turn_box, turn_upright
from coserve_images.reader import Reader

SPARE = 2
"""The shorter side of a JPEG is decoded at least this many times as long as needed."""
JPEG = ("JPEG", "MPO")
"""Pillow's names of JPEG: some cameras append further images."""
FRACTIONS = (8, 4, 2)
"""What the sides of a JPEG can be divided by in decoding."""
HEIC = "HEIF"
"""pillow-heif's name of HEIC."""

# Limit a PNG's total text to Pillow's limit for one chunk: unpacking the default of 64 MiB takes a second.
PngImagePlugin.MAX_TEXT_MEMORY = PngImagePlugin.MAX_TEXT_CHUNK
# `max_pixels` decides what is too large.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
# Damaged metadata does not matter, and may give a warning per tag.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def decode(
    source: bytes | IO[bytes],
    max_pixels: int = MAX_PIXELS,
    *,
    formats: tuple[str, ...] = FORMATS,
    deadline_ns: int | None = None,
) -> Image.Image:
    """Decode an image file to upright 8-bit sRGB, as a viewer would show it on a white page.

    Apply the orientation and the colour profile, take the first frame of an animation, and scale samples of
    more than 8 bits.

    Args:
        source: the file, or its bytes.
        max_pixels: the limit on width times height.
        formats: the formats to read, among Pillow's.
        deadline_ns: when to stop, on the clock of `time.perf_counter_ns`.

    Raises:
        ImageError: the data is not an image in one of the formats or HEIC, is broken or truncated, has more
            than `max_pixels`, or would take out of proportion long.
        LateError: the deadline has passed.
    """
    with open_image(source, max_pixels, formats=formats, deadline_ns=deadline_ns) as opened:
        return opened.decode().image


class Decoded(NamedTuple):
    """An upright image in 8-bit sRGB.

    Attributes:
        image: the pixels.
        box: the photograph's left, top, right and bottom in them. Decoding a JPEG at a fraction of its size
            fills up parts of pixels at two edges, which belong to no photograph.
    """

    image: Image.Image
    box: Box


class OpenedImage:
    """An image whose header has been read.

    Attributes:
        stored_size: width and height before the image is turned upright.
    """

    def __init__(
        self, image: Image.Image, reader: Reader | None = None, max_pixels: int = MAX_PIXELS
    ) -> None:
        """Take over a Pillow image, and the file that it is read from."""
        self._image = image
        self._reader = reader
        self._max_pixels = max_pixels
        self.stored_size = image.size
        self._box: Box | None = None

    def __enter__(self) -> "OpenedImage":
        """Return itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the file."""
        self._image.__exit__(*exception)

    @property
    def format(self) -> str | None:
        """Return Pillow's name of the format."""
        return self._image.format

    @property
    def size(self) -> tuple[int, int]:
        """Return the upright image's width and height."""
        # A PNG may have its metadata behind its pixels.
        if self._image.format == "PNG":
            with _translated(self._max_pixels):
                self._image.load()
        width, height = self.stored_size
        return (height, width) if read_orientation(self._image) in TRANSPOSED else (width, height)

    def count_pixels(self, shorter_side: int) -> int:
        """Return about how many pixels `decode` makes of the image with the same argument."""
        pixels = math.prod(self.stored_size)
        if self.format not in JPEG:
            return pixels
        return pixels // _fraction(self._spare(shorter_side)) ** 2

    def _spare(self, shorter_side: int) -> float:
        """Return how many times as long as wanted the shorter side is."""
        return min(self.stored_size) / (SPARE * shorter_side)

    def reduce(self, factor: float) -> None:
        """Let a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, by at most `factor`. Leave other formats."""
        fraction = _fraction(factor)
        if fraction > 1:
            width, height = self._image.size
            # Pillow rounds the quotient of the sizes down, to one of FRACTIONS.
            reduced = self._image.draft(None, (max(1, width // fraction), max(1, height // fraction)))
            if reduced is not None:
                self._box = reduced[1]

    def decode(self, shorter_side: int | None = None) -> Decoded:
        """Decode the image; for errors see the function `decode`.

        Args:
            shorter_side: the length that the shorter side will be resized to, if it is known. A JPEG is then
                decoded at the smallest fraction of its size that leaves it at least `SPARE` times as long.
        """
        pixels = math.prod(self.stored_size)
        if shorter_side is not None:
            self.reduce(self._spare(shorter_side))
        with _translated(self._max_pixels):
            if self._reader is not None and self._image.format in JPEG:
                check_scans(self._reader.getvalue(), pixels, self._max_pixels)
            self._image.load()
            size = self._image.size
            # A frame can be larger than the header says.
            check_pixels(size, self._max_pixels)
            upright = turn_upright(self._image)
            if self._box is None:
                return Decoded(to_rgb(upright), (0, 0, *upright.size))
            box = turn_box(self._box, size, read_orientation(self._image))
            return Decoded(to_rgb(upright), box)


def open_image(
    source: bytes | IO[bytes],
    max_pixels: int = MAX_PIXELS,
    *,
    formats: tuple[str, ...] = FORMATS,
    deadline_ns: int | None = None,
) -> OpenedImage:
    """Open an image without decoding it yet; see `decode` for arguments and errors."""
    with _translated(max_pixels):
        reader = Reader(source, deadline_ns)
        check_file(reader, max_pixels)
        reader.seek(0)
        if is_heic(reader.read(64)):
            register_heic()
            formats = (*formats, HEIC)
        reader.seek(0)
        image = _identify(reader, formats)
        opened = OpenedImage(image, reader, max_pixels)
        with ExitStack() as stack:
            stack.enter_context(opened)
            check_opened(image, max_pixels)
            # Others are checked when they are decoded, since the whole file has to be read.
            if image.info.get("progressive"):
                check_scans(reader.getvalue(), image.width * image.height, max_pixels)
            scale_transparency(image)
            if image.format == HEIC and turns_itself(reader.getvalue()):
                del image.info["original_orientation"]
            stack.pop_all()
    return opened


def _fraction(factor: float) -> int:
    """Return the largest of `FRACTIONS` that is at most `factor`; 1 if all are larger."""
    return next((fraction for fraction in FRACTIONS if fraction <= factor), 1)


def _identify(reader: Reader, formats: tuple[str, ...]) -> ImageFile.ImageFile:
    try:
        return Image.open(cast(IO[bytes], reader), formats=formats)
    except UnidentifiedImageError as error:
        reader.seek(0)
        if reader.read(4) in TIFF_HEADS:
            raise UnknownFormatError("a kind of TIFF that is not supported") from error
        if HEIC in formats:
            raise ImageError("broken or truncated: a HEIC file without an image that can be read") from error
        raise UnknownFormatError(f"not an image in a supported format ({', '.join(FORMATS)})") from error


@contextmanager
def _translated(max_pixels: int) -> Iterator[None]:
    """Turn the errors of Pillow into ImageError."""
    try:
        yield
    except (ImageError, LateError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"more than the {max_pixels} pixels allowed") from error
    # Pillow's plugins raise any error of their parsers: struct.error, SyntaxError, EOFError and others.
    except Exception as error:
        text = str(error).replace("\n", " ") or type(error).__name__
        raise ImageError(f"broken or truncated: {text}") from error
