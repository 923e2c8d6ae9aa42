"""Read images whose labels do not matter, from any folder, zip or published file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from coserve_images.formats import OWN_SUFFIXES
from coserve_training.data.dataset import CACHE_BYTES, prepare
from coserve_training.data.files import SPLITS, StoredFile, list_entries
from coserve_training.data.finding import find_data
from coserve_training.data.lazy import LazyImages
from coserve_training.data.limits import usable_cores
from coserve_training.data.naming import name_some
from coserve_training.data.passed_over import PassedOver
from coserve_training.data.split import Progress, Split, space_evenly
from coserve_training.errors import DataError


@dataclass(frozen=True)
class Unlabelled:
    """Images without labels.

    Attributes:
        path: where they come from.
        split: the images; all classes are 0.
        skipped: images that were left out because they cannot be decoded, each with its reason.
        notes: what to report about the data, in lines.
    """

    path: str
    split: Split
    skipped: list[str]
    notes: list[str]


def load_unlabelled(
    path: Path,
    image_size: int,
    progress: Progress | None = None,
    *,
    resize_size: int | None = None,
    interpolation: str = "bilinear",
    limit: int | None = None,
    workers: int | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Unlabelled:
    """Read all images of a folder or zip, at any depth, or of a published data set.

    Images in `train/` are left out where there are others in `test/` or `val/`. So are the training images of
    the published files. Images that cannot be decoded are left out and named.

    Args:
        path: a folder, a zip, official CIFAR or SVHN files, or a name in `download.KNOWN`.
        image_size: height and width in pixels to decode to.
        progress: called with the progress of downloading, checking and decoding.
        limit: read at most this number of images, evenly spaced.
        resize_size, interpolation, workers, cache_bytes: see `load_dataset`.

    Raises:
        DataError: if there is no image, or none that can be decoded.
        ConfigError: if the limit is below 1.
    """
    notes = list[str]()
    unreadable = list[str]()
    found = list[tuple[str | None, npt.NDArray[Any]]]()
    for local, labelled in find_data(path, progress):
        if labelled is not None:
            found += [(name, images) for name, (images, _) in labelled[1].items()]
        else:
            found += _list_files(local, notes, unreadable)
    sources = _without_training(path, found, notes)
    chosen = space_evenly(len(sources), limit)
    if len(chosen) < len(sources):
        notes.append(f"{path}: {limit} of {len(sources)} images are used")
        sources = sources[chosen]
    images = LazyImages(
        sources,
        image_size,
        workers=usable_cores() if workers is None else workers,
        skip_corrupt=True,
        resize_size=resize_size,
        interpolation=interpolation,
    )
    split, corrupt = prepare(images, np.zeros(len(sources), np.int64), False, cache_bytes, progress)
    corrupt = unreadable + corrupt
    if not len(split):
        raise DataError(f"{path}: no image can be decoded: {name_some(corrupt)}")
    if corrupt:
        notes.append(f"{len(corrupt)} images cannot be decoded and are left out: {name_some(corrupt)}")
    return Unlabelled(str(path), split, corrupt, notes)


def _list_files(
    path: Path, notes: list[str], unreadable: list[str]
) -> list[tuple[str | None, npt.NDArray[Any]]]:
    """Return the images of a folder or zip by the split's folder that they lie in, if any."""
    passed_over = PassedOver(str(path))
    hidden = list[tuple[str | None, str]]()
    by_split = dict[str | None, list[StoredFile]]()
    for parts, file in list_entries(path, passed_over, hidden):
        if file is None:
            continue
        if PurePosixPath(parts[-1]).suffix.lower() not in OWN_SUFFIXES:
            passed_over.add_file(parts[-1])
            continue
        split = next((SPLITS[part] for part in reversed(parts[:-1]) if part in SPLITS), None)
        by_split.setdefault(split, []).append(file)
    notes += passed_over.lines()
    unreadable += [name for _, name in hidden]
    if not by_split:
        reasons = "; ".join(filter(None, [passed_over.summary(), *unreadable[:1]]))
        raise DataError(f"{path}: no image found" + (f"; not taken: {reasons}" if reasons else ""))
    return [(split, np.array([*files, None], object)[:-1]) for split, files in by_split.items()]


def _without_training(
    path: Path, found: Sequence[tuple[str | None, npt.NDArray[Any]]], notes: list[str]
) -> npt.NDArray[Any]:
    """Join the images; leave out those for training if others are for testing."""
    if {"test", "val"} & {split for split, _ in found}:
        left_out = sum(len(images) for split, images in found if split == "train")
        if left_out:
            notes.append(f"{path}: {left_out} training images are not used, only those for testing")
        found = [(split, images) for split, images in found if split != "train"]
    return np.concatenate([images for _, images in found])
