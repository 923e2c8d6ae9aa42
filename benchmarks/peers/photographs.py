"""Make photographs of 0.9 kB, 100 kB and 4 MB from those in a folder, for `compare.py`.

    python benchmarks/peers/photographs.py photos .peers/photographs

Small ones have the 32 x 32 pixels of CIFAR-10, medium ones 640 x 480, and large ones the 12 megapixels of a
phone's camera and the noise of its sensor, without which an enlarged photograph is too small a file. Each is
a JPEG of the lowest quality that reaches the file size.
"""

import argparse
import io
import sys
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from coserve_bench.http.images import read_images
from coserve_client import InputError


@dataclass(frozen=True)
class Size:
    """A size of photographs.

    Attributes:
        name: the folder's name.
        pixels: width and height.
        kilobytes: size of a file.
        count: the most photographs to make.
        noise: standard deviation of the noise, in levels of 255.
    """

    name: str
    pixels: tuple[int, int]
    kilobytes: float
    count: int
    noise: float = 0


SIZES = (
    Size("small", (32, 32), 0.9, 100),
    Size("medium", (640, 480), 100, 20),
    Size("large", (4000, 3000), 4000, 4, noise=8),
)
QUALITIES = range(30, 101)


def make(photograph: Image.Image, size: Size) -> bytes:
    """Return a JPEG of one size, cropped to its proportions."""
    fitted = ImageOps.fit(photograph, size.pixels, Image.Resampling.BICUBIC)
    if size.noise:
        noise = np.random.default_rng(0).normal(0, size.noise, (fitted.height, fitted.width, 1))
        fitted = Image.fromarray(np.clip(np.asarray(fitted) + noise, 0, 255).astype(np.uint8))
    quality = bisect_left(QUALITIES, size.kilobytes, key=lambda quality: len(encode(fitted, quality)) / 1000)
    return encode(fitted, QUALITIES[min(quality, len(QUALITIES) - 1)])


def encode(image: Image.Image, quality: int) -> bytes:
    """Return a JPEG."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def main() -> None:
    """Write a folder of photographs for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", type=Path, nargs="+", help="files or folders")
    parser.add_argument("output", type=Path, help="a folder; its photographs are replaced")
    arguments = parser.parse_args()
    originals = read_images(arguments.photographs)
    for size in SIZES:
        folder = arguments.output / size.name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.jpg"):
            old.unlink()
        for number, original in enumerate(originals[: size.count]):
            with Image.open(io.BytesIO(original.data)) as opened:
                photograph = ImageOps.exif_transpose(opened).convert("RGB")
            (folder / f"{number:03}.jpg").write_bytes(make(photograph, size))


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
