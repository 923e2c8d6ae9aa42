"""Read a data set of labelled images from folders, zips and published files."""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from coserve_training.data.check import find_fault
from coserve_training.data.decode import Pixels
from coserve_training.data.files import Files
from coserve_training.data.finding import find_data
from coserve_training.data.identity import identify
from coserve_training.data.imagenet import label_validation_images
from coserve_training.data.lazy import Indices, LazyImages
from coserve_training.data.limits import usable_bytes, usable_cores
from coserve_training.data.membership import Assign, Sources
from coserve_training.data.naming import name_some
from coserve_training.data.sizes import describe_reduction
from coserve_training.data.split import Dataset, Labelled, Progress, Split
from coserve_training.data.workers import ParallelMap, index_batches
from coserve_training.errors import CorruptImagesError, DataError

CACHE_BYTES = 4 << 30
"""Splits with more decoded bytes, or more than a quarter of the memory, are decoded anew in every epoch."""
SPLIT_NAMES = ("train", "val", "test")
BATCH = 64
"""Images that a worker decodes or checks between two reports of progress."""


def load_dataset(
    paths: Sequence[Path],
    image_size: int,
    progress: Progress | None = None,
    *,
    resize_size: int | None = None,
    interpolation: str = "bilinear",
    whole: bool = False,
    skip_corrupt: bool = False,
    only: Collection[str] = SPLIT_NAMES,
    assign: Assign | None = None,
    workers: int | None = None,
    cache_bytes: int = CACHE_BYTES,
) -> Dataset:
    """Read labelled images from one or several paths, and merge their splits.

    Args:
        paths: image folders (`train|val|test/<class>/*`), zips of such folders, ImageNet as
            published, the official CIFAR-10/100 and SVHN files, or names in `download.KNOWN`.
        image_size: height and width in pixels to decode to.
        progress: called with the progress of downloading, checking and decoding.
        resize_size: length that the shorter side is resized to before the centre is cut out; by default
            `image_size`.
        interpolation: `"bilinear"` or `"bicubic"`.
        whole: leave training images as large as they are stored, for crops at random (`Split.with_views`).
        skip_corrupt: leave out images that cannot be decoded instead of raising.
        only: splits to read. Training images are read, too, if there is nothing to test on.
        assign: moves images between the splits before they are decoded (membership.py).
        workers: processes that decode; by default one for each usable core. 0 decodes in this process.
        cache_bytes: keep a split in memory if its decoded images take no more than this.

    Raises:
        DataError: for a path without images, or a class missing from a split.
        CorruptImagesError: for images that cannot be decoded.
    """
    files = Files()
    labels, sources = _sources(paths, files, progress)
    unreadable = files.unreadable
    notes = [line for passed_over in files.passed_over for line in passed_over.lines()]
    test_name = _choose_test(sources)
    if "test" in sources:
        sources = {name: source for name, source in sources.items() if name in only}
        left_out = {test_name if name == "test" else name for name in SPLIT_NAMES if name not in only}
        unreadable = [(split, name) for split, name in unreadable if split not in left_out]
    workers = usable_cores() if workers is None else workers
    if assign is not None:
        sources, assigned = assign(labels, sources, partial(identify, workers=workers, progress=progress))
        notes += assigned
        _check_classes(labels, {name: targets for name, (_, targets) in sources.items() if name == "train"})
    splits = {}
    corrupt = [name for _, name in unreadable]
    for name, (found, targets) in sources.items():
        images = LazyImages(found, image_size, None, workers, skip_corrupt, resize_size, interpolation)
        if name == "train" and name in only:
            notes += describe_reduction(images)
        splits[name], bad = prepare(images, targets, whole and name == "train", cache_bytes, progress)
        corrupt += bad
    if corrupt and not skip_corrupt:
        total = sum(len(targets) for _, targets in sources.values()) + len(unreadable)
        raise CorruptImagesError(
            f"{len(corrupt)} of {total} images cannot be decoded: {name_some(corrupt)}; replace them"
        )
    if corrupt:
        notes.append(f"{len(corrupt)} images cannot be decoded and are left out: {name_some(corrupt)}")
        _check_classes(labels, {name: split.targets for name, split in splits.items()})
    return Dataset(
        labels, splits.get("train"), splits.get("test"), test_name, splits.get("val"), corrupt, notes
    )


def _sources(paths: Sequence[Path], files: Files, progress: Progress | None) -> tuple[list[str], Sources]:
    """Return the labels, and for each split the sources that `LazyImages` reads and the classes `[N]`."""
    arrays = []
    for path in paths:
        for local, labelled in find_data(path, progress):
            if labelled is not None:
                arrays.append(labelled)
            else:
                files.collect(local)
    if arrays and (files.by_split or files.unlabelled):
        raise DataError("the official CIFAR and SVHN files cannot be combined with image folders")
    return _join_arrays(arrays) if arrays else _list_files(files)


def _choose_test(sources: Sources) -> str:
    """Make the validation split the test split if there is no other; return which images are tested on."""
    if "test" in sources:
        return "test"
    if "val" in sources:
        sources["test"] = sources.pop("val")
        return "val"
    return "held-out"


def _join_arrays(arrays: Sequence[Labelled]) -> tuple[list[str], Sources]:
    labels = arrays[0][0]
    if any(other != labels for other, _ in arrays):
        raise DataError("data sets with different classes cannot be combined")
    names = dict.fromkeys(name for _, splits in arrays for name in splits)
    parts = {name: [splits[name] for _, splits in arrays if name in splits] for name in names}
    return labels, {
        name: (np.concatenate([i for i, _ in found]), np.concatenate([t for _, t in found]))
        for name, found in parts.items()
    }


def _list_files(files: Files) -> tuple[list[str], Sources]:
    label_validation_images(files)
    labels = sorted({label for by_class in files.by_split.values() for label in by_class})
    if not labels:
        raise DataError("no image found, only files with the classes of ImageNet's validation images")
    empty = [label for label in labels if not any(files.by_split[name].get(label) for name in files.by_split)]
    if empty:
        raise DataError(f"no image in the folder of class {name_some(empty)}")
    splits = {}
    for name, by_class in files.by_split.items():
        found = [by_class.get(label, []) for label in labels]
        sources = np.array([file for of_class in found for file in of_class], object)
        splits[name] = (sources, np.repeat(np.arange(len(labels)), [len(of_class) for of_class in found]))
    _check_classes(labels, {name: targets for name, (_, targets) in splits.items()})
    return labels, splits


def _check_classes(labels: Sequence[str], targets: dict[str, Indices]) -> None:
    if len(labels) < 2:
        raise DataError(f"only one class found ({', '.join(labels)}); a classifier needs at least two")
    for split, classes in targets.items():
        missing = [labels[i] for i in np.flatnonzero(np.bincount(classes, minlength=len(labels)) == 0)]
        if missing:
            raise DataError(f"the {split} split has no image of class {name_some(missing)}")


def prepare(
    images: LazyImages, targets: Indices, whole: bool, cache_bytes: int, progress: Progress | None
) -> tuple[Split, list[str]]:
    """Decode a split into memory, or only check its files if it is too large. Leave out corrupt images.

    Returns:
        The split, and the names of corrupt images with reasons.
    """
    decoded_already = images.sources.dtype == np.uint8
    if decoded_already and images.square.resize_size == images.size == images.sources.shape[1]:
        return Split(images.sources, targets), []
    wanted = len(images) * images.size**2 * 3
    cached = not whole and wanted <= min(cache_bytes, usable_bytes() // 4)
    if decoded_already and not cached:
        return Split(images, targets), []
    array = np.empty((len(images) if cached else 0, images.size, images.size, 3), np.uint8)
    step, what = (_decode, "decoding images") if cached else (_check, "checking images")
    batches = index_batches(len(images), BATCH)
    good = np.zeros(len(images), bool)
    corrupt = list[str]()
    filled = 0
    done = 0
    for pixels, indices, bad in ParallelMap(partial(step, images), batches, images.workers):
        if cached:
            array[filled : filled + len(indices)] = pixels
        good[indices] = True
        corrupt += bad
        filled += len(indices)
        done += len(indices) + len(bad)
        if progress is not None:
            progress(what, done, len(images))
    return Split(array[:filled] if cached else images.select(good), targets[good]), corrupt


def _decode(images: LazyImages, indices: Indices) -> tuple[Pixels, Indices, list[str]]:
    """Return the pixels of the images that can be decoded, their indices, and the names of the others."""
    attempts = [images.attempt(index) for index in indices]
    good = [not isinstance(attempt, str) for attempt in attempts]
    pixels = [attempt for attempt in attempts if not isinstance(attempt, str)]
    stacked = np.stack(pixels) if pixels else np.empty((0, images.size, images.size, 3), np.uint8)
    return stacked, indices[good], [attempt for attempt in attempts if isinstance(attempt, str)]


def _check(images: LazyImages, indices: Indices) -> tuple[None, Indices, list[str]]:
    """Return None, the indices of the images whose files look complete, and the names of the others."""
    faults = [find_fault(file, images.square.resize_size) for file in images.sources[indices]]
    good = np.array([fault is None for fault in faults])
    named = [f"{images.sources[i].name} ({fault})" for i, fault in zip(indices, faults, strict=True) if fault]
    return None, indices[good], named
