"""Reading labelled images from training's data formats, preprocessed as the server does."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coserve_export.ensemble import Preprocessing
from coserve_export.errors import DescriptionError
from coserve_images.preprocess import resize, shorter_side

BATCH_SIZE = 32


@dataclass(frozen=True)
class LabelledImages:
    """Images that are decoded lazily, with their classes.

    Attributes:
        sources: encoded or decoded images `[N]`.
        targets: the ensemble's class indices `[N]`.
        preprocessing: how images are prepared for the networks.
    """

    sources: npt.NDArray[Any]
    targets: npt.NDArray[np.int64]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.targets)

    def choose(self, indices: npt.NDArray[np.int64]) -> "LabelledImages":
        """Return the images at these indices."""
        return LabelledImages(self.sources[indices], self.targets[indices], self.preprocessing)

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
                return np.asarray(resize(decoded, self.preprocessing))
        # Opening a file or a member of a zip fails with errors of many types.
        except Exception as error:
            raise DescriptionError(
                f"{getattr(source, 'name', 'an image')} cannot be decoded: {error}"
            ) from error


def read_labelled(
    paths: Sequence[Path], splits: Sequence[str], labels: Sequence[str], preprocessing: Preprocessing
) -> LabelledImages:
    """Read the first of the given splits that the data has.

    Args:
        paths: files or folders in any format that `coserve train --data` reads.
        splits: `"train"` and `"test"`, in order of preference.
        labels: the ensemble's labels, in order of class index.
        preprocessing: how images are prepared for the networks.

    Raises:
        DescriptionError: the data cannot be read, has none of the splits, or has other classes.
    """
    from coserve_training.data import load_dataset
    from coserve_training.errors import TrainingError

    try:
        size = max(preprocessing.height, preprocessing.width)
        dataset = load_dataset(paths, size, cache_bytes=0, workers=0)
    except TrainingError as error:
        # The message suggests an option of `coserve train`; measurements need all images.
        raise DescriptionError(str(error).removesuffix(", or leave them out with --skip-corrupt")) from error
    location = ", ".join(map(str, paths))
    available = [getattr(dataset, name) for name in splits if getattr(dataset, name) is not None]
    if not available:
        raise DescriptionError(f"{location}: no {' or '.join(splits)} split")
    split = available[0]
    if set(dataset.labels) != set(labels):
        missing = sorted(set(labels) - set(dataset.labels))
        unknown = sorted(set(dataset.labels) - set(labels))
        raise DescriptionError(
            f"{location}: classes differ from the ensemble's: missing {missing}, unknown {unknown}"
        )
    order = np.array([list(labels).index(label) for label in dataset.labels])
    sources = getattr(split.images, "sources", split.images)
    return LabelledImages(sources, order[split.targets], preprocessing)
