"""Labelled images in the forms that training reads, at the size and by the rule that serving follows."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from coserve_export.ensemble import Preprocessing
from coserve_export.errors import DescriptionError
from coserve_export.samples import resize

BATCH = 32


@dataclass(frozen=True)
class LabelledImages:
    """Images `[N]`, decoded when they are read, and their classes `[N]` in the ensemble's order."""

    sources: npt.NDArray[Any]
    targets: npt.NDArray[np.int64]
    preprocessing: Preprocessing

    def __len__(self) -> int:
        return len(self.targets)

    def choose(self, indices: npt.NDArray[np.int64]) -> "LabelledImages":
        """Some of the images."""
        return LabelledImages(self.sources[indices], self.targets[indices], self.preprocessing)

    def batches(self) -> Iterator[npt.NDArray[np.float32]]:
        """What networks take, float32 `[up to 32, 3, H, W]`.

        Raises:
            DescriptionError: an image cannot be decoded.
        """
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self), BATCH):
                images = list(pool.map(self._decode, self.sources[start : start + BATCH]))
                yield self.preprocessing.normalise(np.stack(images))

    def _decode(self, source: Any) -> npt.NDArray[np.uint8]:
        from coserve_training.data.decode import to_rgb, upright
        from coserve_training.data.lazy import open_image

        try:
            with open_image(source) as image:
                return np.asarray(resize(to_rgb(upright(image)), self.preprocessing))
        # Pillow's plugins raise whatever their parser met.
        except Exception as error:
            raise DescriptionError(
                f"{getattr(source, 'name', 'an image')} cannot be decoded: {error}"
            ) from error


def read_labelled(
    paths: Sequence[Path], splits: Sequence[str], labels: Sequence[str], preprocessing: Preprocessing
) -> LabelledImages:
    """Read the first of the splits that there is.

    Args:
        paths: in any form that `coserve train --data` takes.
        splits: `"train"`, `"test"`.
        labels: the ensemble's, by class index.

    Raises:
        DescriptionError: there are no such images, or they are of other classes.
    """
    from coserve_training.data import load_dataset
    from coserve_training.errors import TrainingError

    try:
        size = max(preprocessing.height, preprocessing.width)
        dataset = load_dataset(paths, size, cache_bytes=0, workers=0)
    except TrainingError as error:
        # Training can leave images out; what is to be measured should be whole.
        raise DescriptionError(str(error).removesuffix(", or leave them out with --skip-corrupt")) from error
    where = ", ".join(map(str, paths))
    split = next((found for name in splits if (found := getattr(dataset, name)) is not None), None)
    if split is None:
        raise DescriptionError(f"{where}: no {' or '.join(splits)} split")
    if set(dataset.labels) != set(labels):
        missing, unknown = set(labels) - set(dataset.labels), set(dataset.labels) - set(labels)
        differing = f"missing {sorted(missing)}, unknown {sorted(unknown)}"
        raise DescriptionError(f"{where}: classes differ from the ensemble's: {differing}")
    order = np.array([list(labels).index(label) for label in dataset.labels])
    sources = getattr(split.images, "sources", split.images)
    return LabelledImages(sources, order[split.targets], preprocessing)
