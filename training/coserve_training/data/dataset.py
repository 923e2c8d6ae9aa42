"""A labelled data set in memory: every image decoded once, at the size the network takes."""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from coserve_training.data.cifar import read_cifar
from coserve_training.data.decode import centre_crop, decode_image
from coserve_training.data.files import ImageFile, find_images
from coserve_training.errors import DataError

Progress = Callable[[str, int, int], None]
"""Told what is being done, images done and images in all."""


@dataclass(frozen=True)
class Split:
    """Images `[N, H, W, 3]` uint8 and their classes `[N]` int64."""

    images: npt.NDArray[np.uint8]
    targets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Dataset:
    """Labels by class index, and the splits that were found."""

    labels: list[str]
    train: Split | None
    test: Split | None


def load_dataset(paths: Sequence[Path], image_size: int, progress: Progress | None = None) -> Dataset:
    """Read labelled images from one or several places, whose splits are put together.

    Args:
        paths: image folders (`train/<class>/*`, `test|val/<class>/*`), zips of such folders,
            or the official CIFAR-10/100 python files.
        image_size: height and width in pixels to decode to.
        progress: told about every decoded image.

    Raises:
        DataError: for a path without images, a class missing in one split, images that cannot be decoded
            (all are named), or more pixels than this machine's memory holds.
    """
    if len(paths) == 1 and (cifar := read_cifar(paths[0])) is not None:
        labels, splits = cifar
        resized = {
            name: Split(_resize(images, image_size), targets) for name, (images, targets) in splits.items()
        }
        return Dataset(labels, resized["train"], resized["test"])
    files: dict[str, dict[str, list[ImageFile]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        for split, by_class in find_images(path).by_split.items():
            for label, found in by_class.items():
                files[split][label] += found
    labels = sorted({label for by_class in files.values() for label in by_class})
    _check_classes(files, labels)
    total = sum(len(found) for by_class in files.values() for found in by_class.values())
    _check_memory(total, image_size)
    decoded, bad = {}, []
    done = 0
    for split, by_class in files.items():
        flat = [file for label in labels for file in by_class[label]]
        targets = np.repeat(np.arange(len(labels)), [len(by_class[label]) for label in labels])
        images = np.empty((len(flat), image_size, image_size, 3), np.uint8)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            outcomes = pool.map(lambda file: _decode(file, image_size), flat)
            for index, outcome in enumerate(outcomes):
                if isinstance(outcome, str):
                    bad.append(outcome)
                else:
                    images[index] = outcome
                done += 1
                if progress is not None:
                    progress("decoding images", done, total)
        decoded[split] = Split(images, targets)
    if bad:
        shown = "; ".join(bad[:5]) + (f"; and {len(bad) - 5} more" if len(bad) > 5 else "")
        raise DataError(f"{len(bad)} of {total} images cannot be decoded: {shown}")
    return Dataset(labels, decoded.get("train"), decoded.get("test"))


def _check_classes(files: dict[str, dict[str, list[ImageFile]]], labels: list[str]) -> None:
    if len(labels) < 2:
        raise DataError(f"only one class found ({labels[0]}); a classifier needs at least two")
    for split, by_class in files.items():
        missing = [label for label in labels if not by_class.get(label)]
        if missing:
            raise DataError(f"the {split} split has no image of class {', '.join(missing)}")


def _check_memory(images: int, image_size: int) -> None:
    wanted = images * image_size**2 * 3
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    if wanted > available:
        raise DataError(
            f"{images} images of {image_size}×{image_size} pixels take {wanted / 2**30:.1f} GiB, "
            f"more than half of this machine's memory; use a smaller --image-size or fewer images"
        )


def _decode(file: ImageFile, image_size: int) -> npt.NDArray[np.uint8] | str:
    try:
        return decode_image(file.read(), image_size)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return f"{file.name} ({error})".replace("\n", " ")


def _resize(images: npt.NDArray[np.uint8], image_size: int) -> npt.NDArray[np.uint8]:
    if images.shape[1] == image_size:
        return images
    return np.stack([np.asarray(centre_crop(Image.fromarray(image), image_size)) for image in images])
