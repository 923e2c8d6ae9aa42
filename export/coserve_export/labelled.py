"""Reading labelled images from training's data formats, preprocessed as the server does."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from coserve_export.ensemble import Member, Preprocessing
from coserve_export.errors import DescriptionError
from coserve_export.session import Session
from coserve_images.preprocess import resize, shorter_side

if TYPE_CHECKING:
    from coserve_training.data import Dataset, Split
    from coserve_training.runs.images import ImageRecord

BATCH_SIZE = 32


@dataclass(frozen=True)
class LabelledImages:
    """Images that are decoded lazily, with their classes.

    Attributes:
        sources: encoded or decoded images `[N]`.
        targets: the ensemble's class indices `[N]`.
        preprocessing: how images are prepared for the networks.
        notes: what to report about the data, in lines.
        split: which images these are: "test", "val" or "held-out".
        val: the images of a validation split beside a test split, which calibrate probabilities.
    """

    sources: npt.NDArray[Any]
    targets: npt.NDArray[np.int64]
    preprocessing: Preprocessing
    notes: Sequence[str] = ()
    split: str = "test"
    val: "LabelledImages | None" = None

    def __len__(self) -> int:
        return len(self.targets)

    def choose(self, indices: npt.NDArray[np.int64]) -> "LabelledImages":
        """Return the images at these indices."""
        return replace(self, sources=self.sources[indices], targets=self.targets[indices])

    def without(self, others: "LabelledImages") -> "LabelledImages":
        """Leave out the images whose content is among others, and note how many."""
        from coserve_training.data import identify

        among = identify(others.sources).matches(identify(self.sources))
        if not among.any():
            return self
        note = f"{among.sum()} of {len(self)} images are evaluation images; nothing is calibrated on them"
        return replace(self.choose(np.flatnonzero(~among)), notes=[*self.notes, note])

    def batches(self) -> Iterator[npt.NDArray[np.float32]]:
        """Yield batches of up to 32 preprocessed images, float32 `[N, 3, H, W]`.

        Raises:
            DescriptionError: an image cannot be decoded.
        """
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self), BATCH_SIZE):
                images = list(pool.map(self._decode, self.sources[start : start + BATCH_SIZE]))
                yield self.preprocessing.normalise(np.stack(images))

    def _decode(self, source: Any) -> npt.NDArray[np.uint8]:
        from coserve_training.data.lazy import open_image

        try:
            with open_image(source) as image:
                decoded = image.decode(shorter_side(self.preprocessing))
                return np.asarray(resize(decoded.image, self.preprocessing, box=decoded.box))
        # Opening a file or a member of a zip fails with errors of many types.
        except Exception as error:
            raise DescriptionError(
                f"{getattr(source, 'name', 'an image')} cannot be decoded: {error}"
            ) from error


def read_evaluation(
    paths: Sequence[Path], labels: Sequence[str], preprocessing: Preprocessing, run: Path | None = None
) -> LabelledImages:
    """Read the test split of some data, to measure accuracy on, and the validation split if there are both.

    Args:
        paths: files or folders in any format that `coserve train --data` reads.
        labels: the ensemble's labels, in order of class index.
        preprocessing: how images are prepared for the networks.
        run: the run folder of the networks, if any. Without a test split, the images that training held out
            are read; images that it trained on are refused.

    Raises:
        DescriptionError: the data cannot be read, has no test images, or has other classes.
        TrainingError: the run folder cannot be read.
    """
    from coserve_training.errors import DataError

    if repeated := [label for label, count in Counter(labels).items() if count > 1]:
        raise DescriptionError(
            f"accuracy cannot be measured: several classes have the same label {repeated}, so the classes of "
            "images are not known; give every class a label of its own"
        )
    record = _read_record(run)
    try:
        dataset, test = record.load_test(paths, _size(preprocessing), with_val=True, workers=0, cache_bytes=0)
    except DataError as error:
        raise DescriptionError(str(error)) from error
    images = _match_classes(dataset, test, dataset.test_name, paths, labels, preprocessing)
    if dataset.val is None:
        return images
    return replace(images, val=_match_classes(dataset, dataset.val, "val", paths, labels, preprocessing))


def read_calibration(
    paths: Sequence[Path], labels: Sequence[str], preprocessing: Preprocessing, run: Path | None = None
) -> LabelledImages:
    """Read the training split of some data, or without one the test split, to calibrate on.

    The images that the run of the networks was tested on are left out. Arguments and errors are those of
    `read_evaluation`.
    """
    from coserve_training.errors import DataError

    record = _read_record(run)
    try:
        dataset, split = record.load_calibration(paths, _size(preprocessing))
    except DataError as error:
        raise DescriptionError(str(error)) from error
    return _match_classes(dataset, split, dataset.test_name, paths, labels, preprocessing)


def run_members(members: Sequence[Member], images: LabelledImages) -> npt.NDArray[np.float32]:
    """Return the logits of every member, `[S, N, C]`."""
    sessions = [(Session(member.model, f"member {i}"), member) for i, member in enumerate(members)]
    batches = [
        np.stack([session.run(member.output, {member.input: batch}) for session, member in sessions])
        for batch in images.batches()
    ]
    return np.concatenate(batches, axis=1)


def _read_record(run: Path | None) -> "ImageRecord":
    from coserve_training.runs.images import ImageRecord

    return ImageRecord() if run is None else ImageRecord.read(run)


def _size(preprocessing: Preprocessing) -> int:
    return max(preprocessing.height, preprocessing.width)


def _match_classes(
    dataset: "Dataset",
    split: "Split",
    name: str,
    paths: Sequence[Path],
    labels: Sequence[str],
    preprocessing: Preprocessing,
) -> LabelledImages:
    """Number the images' classes as the ensemble does; `name` is the split's."""
    location = ", ".join(map(str, paths))
    if set(dataset.labels) != set(labels):
        missing = sorted(set(labels) - set(dataset.labels))
        unknown = sorted(set(dataset.labels) - set(labels))
        raise DescriptionError(
            f"{location}: classes differ from the ensemble's: missing {missing}, unknown {unknown}"
        )
    order = np.array([list(labels).index(label) for label in dataset.labels])
    images: Any = split.images
    sources: npt.NDArray[Any] = getattr(images, "sources", images)
    return LabelledImages(sources, order[split.targets], preprocessing, dataset.notes, name)
