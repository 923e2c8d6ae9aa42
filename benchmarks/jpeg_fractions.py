"""Compare JPEGs decoded at a fraction of their size with JPEGs decoded whole: pixels, logits, classes, time.

    python benchmarks/jpeg_fractions.py PHOTOGRAPHS [--repository FOLDER] [--network NAME]

Each photograph counts with five crops of it, so that there are more of them.
"""

import argparse
import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from coserve_images import decode
from coserve_images.decode import open_image
from coserve_images.preprocess import preprocess, shorter_side

WHOLE = 0
SPARES = (WHOLE, 1, 2, 4)
"""How many times longer than needed the shorter side is at least decoded."""


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


def enlarge(photograph: bytes, pixels: float) -> bytes:
    """Return a photograph with so many pixels."""
    image = Image.open(io.BytesIO(photograph)).convert("RGB")
    scale = (pixels / (image.width * image.height)) ** 0.5
    file = io.BytesIO()
    image.resize((round(image.width * scale), round(image.height * scale))).save(file, "JPEG", quality=92)
    return file.getvalue()


def tensor(photograph: bytes, spare: int) -> NDArray[np.float32]:
    """Return what the networks get; with `WHOLE`, of the JPEG in full size."""
    decode.SPARE = spare
    with open_image(photograph) as opened:
        image, box = opened.decode(None if spare == WHOLE else shorter_side(Input()))
    return preprocess(image, Input(), box=box)


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
    large = [enlarge(original, 12e6) for original in originals[:5]]
    for spare in SPARES:
        began = time.process_time()
        for one in large:
            tensor(one, spare)
        milliseconds = (time.process_time() - began) / len(large) * 1000
        print(f"12 megapixels, {'whole' if spare == WHOLE else f'{spare} x'}: {milliseconds:.0f} ms")


if __name__ == "__main__":
    main()
