"""Compare JPEGs decoded at a fraction of their size with JPEGs decoded whole: pixels, logits, classes, time.

    python benchmarks/jpeg_fractions.py PHOTOGRAPHS [--repository FOLDER] [--network NAME]

Each photograph counts with five crops of it, so that there are more of them. Times are of photographs with 12
megapixels, made of the first one: as they are, and in Display P3 and to be turned, as some phones write them.
"""

import argparse
import io
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from peers.photographs import Size, make
from PIL import ExifTags, Image

from coserve_images import decode
from coserve_images.decode import open_image
from coserve_images.preprocess import preprocess, shorter_side

sys.path.append(str(Path(__file__).parents[1]))

from tests.images.profiles import DISPLAY_P3, rgb_profile

WHOLE = 0
PRESENT = decode.SPARE
SPARES = (WHOLE, 1, PRESENT, 4)
"""How many times longer than needed the shorter side is at least decoded."""
REPEATS = 9


@dataclass(frozen=True)
class Input:
    """What the shipped ensembles take."""

    height: int = 32
    width: int = 32
    resize_size: int | None = 32
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = (0.4913, 0.4821, 0.4465)
    std: tuple[float, ...] = (0.2452, 0.2428, 0.2606)


def crops(photograph: bytes) -> list[bytes]:
    """Return a photograph, and five overlapping parts of it."""
    image = Image.open(io.BytesIO(photograph)).convert("RGB")
    width, height = image.size
    found = [photograph]
    for x, y in ((0, 0), (2, 0), (0, 2), (2, 2), (1, 1)):
        left = x * width // 6
        top = y * height // 6
        file = io.BytesIO()
        part = image.crop((left, top, left + width * 2 // 3, top + height * 2 // 3))
        part.save(file, "JPEG", quality=90)
        found.append(file.getvalue())
    return found


def large_photographs(photograph: bytes) -> dict[str, bytes]:
    """Return JPEGs of 12 megapixels, by what they are."""
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    as_phones = {"icc_profile": rgb_profile(DISPLAY_P3), "exif": turned}
    image = Image.open(io.BytesIO(photograph)).convert("RGB")
    found = {}
    for size in (Size("large", (4000, 3000), 1000, 1), Size("noisy", (4000, 3000), 4000, 1, noise=8)):
        plain = make(image, size)
        file = io.BytesIO()
        Image.open(io.BytesIO(plain)).save(file, "JPEG", quality="keep", **as_phones)
        megabytes = f"{len(plain) / 1e6:.1f} MB"
        found |= {megabytes: plain, f"{megabytes}, Display P3, turned": file.getvalue()}
    return found


def tensor(photograph: bytes, spare: int) -> NDArray[np.float32]:
    """Return what the networks get; with `WHOLE`, of the JPEG in full size."""
    decode.SPARE = spare
    with open_image(photograph) as opened:
        image, box = opened.decode(None if spare == WHOLE else shorter_side(Input()))
    return preprocess(image, Input(), box=box)


def milliseconds(photograph: bytes, spare: int) -> float:
    """Return the median processor time of a photograph."""
    times = []
    for _ in range(REPEATS):
        began = time.process_time()
        tensor(photograph, spare)
        times.append(1000 * (time.process_time() - began))
    return median(times)


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--network", default="wide_resnet16_4")
    arguments = parser.parse_args()
    originals = [file.read_bytes() for file in sorted(arguments.photographs.iterdir())]
    photographs = [one for original in originals for one in crops(original)]
    tensors = {spare: np.stack([tensor(one, spare) for one in photographs]) for spare in SPARES}
    levels = 255 * np.array(Input().std)[:, None, None]
    for spare in SPARES[1:]:
        difference = np.abs((tensors[spare] - tensors[WHOLE]) * levels)[:: len(photographs) // len(originals)]
        means = difference.mean((1, 2, 3))
        print(f"{spare} x: photographs differ by {means.mean():.2f} levels, the worst by {means.max():.2f}")
    for split in (1, 2, 4):
        members = sorted(arguments.repository.glob(f"{arguments.network}_s{split}_member*/*/model.onnx"))
        sessions = [onnxruntime.InferenceSession(member) for member in members]
        logits = {
            spare: np.mean([session.run(None, {"images": images})[0] for session in sessions], 0)
            for spare, images in tensors.items()
        }
        for spare in SPARES[1:]:
            difference = np.abs(logits[spare] - logits[WHOLE])
            same = (logits[spare].argmax(1) == logits[WHOLE].argmax(1)).sum()
            print(
                f"S={split}, {spare} x: logits differ by {difference.mean():.3f}, at most "
                f"{difference.max():.2f} (standard deviation {logits[WHOLE].std():.2f}); "
                f"first class the same in {same} of {len(photographs)}"
            )
    for name, photograph in large_photographs(originals[0]).items():
        whole, fraction = (milliseconds(photograph, spare) for spare in (WHOLE, PRESENT))
        print(f"{name}: {whole:.0f} ms whole, {fraction:.0f} ms at a fraction, {whole / fraction:.1f} x")


if __name__ == "__main__":
    main()
