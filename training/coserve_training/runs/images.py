"""The record of a run's images: hashes of those it was trained on, and of those it was tested on."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coserve_training.data import Dataset, Identities, Known, Membership, Progress, Split, load_dataset
from coserve_training.data.dataset import CACHE_BYTES
from coserve_training.data.identity import NONE
from coserve_training.errors import DataError, RunError
from coserve_training.runs.folder import Description, write_atomically

FILE = "images.npz"


@dataclass(frozen=True)
class ImageRecord:
    """The known images of some networks; none for networks without a run folder.

    Attributes:
        folder: the run folder.
        known: the images that it was trained on and tested on; None if an earlier version began the run.
        data: the paths of the run's own data.
        skip_corrupt: leave out images that cannot be decoded.
    """

    folder: Path | None = None
    known: Known | None = None
    data: Sequence[str] = ()
    skip_corrupt: bool = False

    @classmethod
    def read(cls, folder: Path) -> "ImageRecord":
        """Read the record of a run.

        Raises:
            RunError: if the folder is not a run folder, or one of its files is damaged.
        """
        config = Description.read(folder).config
        return cls(folder, read_known(folder), config.data, config.skip_corrupt)

    def load_test(
        self,
        paths: Sequence[Path],
        image_size: int,
        progress: Progress | None = None,
        *,
        with_val: bool = False,
        resize_size: int | None = None,
        interpolation: str = "bilinear",
        workers: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        best: bool = False,
    ) -> tuple[Dataset, Split]:
        """Load the test split; without one, the validation split, or the images that training held out.

        Args:
            paths: the paths of a data set.
            image_size: height and width in pixels to decode to.
            progress: called with the progress of checking and decoding.
            with_val: load the validation split, too, as `Dataset.val`, if there is one beside the test split.
            resize_size, interpolation, workers, cache_bytes: see `load_dataset`.
            best: the networks are those of the best epoch; note the images that chose it.

        Returns:
            The data set, and its test split.

        Raises:
            DataError: if the images cannot be read, were trained on, or are not there.
        """
        membership = self._membership(paths, best)
        dataset = load_dataset(
            paths,
            image_size,
            progress,
            resize_size=resize_size,
            interpolation=interpolation,
            skip_corrupt=self.skip_corrupt,
            only=("val", "test") if with_val else ("test",),
            assign=membership.for_testing,
            workers=workers,
            cache_bytes=cache_bytes,
        )
        if dataset.test is None:
            raise DataError(
                f"{_join(paths)}: no test split (test/<class>/<image> or val/) to evaluate on"
                + self._why_none_was_held_out()
            )
        self._note_missing_record(dataset)
        return dataset, dataset.test

    def load_calibration(self, paths: Sequence[Path], image_size: int) -> tuple[Dataset, Split]:
        """Load the training images; without any, the validation images, or the test images.

        The run's own test images are left out. The images are decoded when they are read. Arguments and
        results are those of `load_test`.
        """
        membership = self._membership(paths)
        dataset = load_dataset(
            paths,
            image_size,
            skip_corrupt=self.skip_corrupt,
            assign=membership.for_calibration,
            workers=0,
            cache_bytes=0,
        )
        if dataset.test is None:
            raise DataError(f"{_join(paths)}: all images are test images; calibrate on others")
        self._note_missing_record(dataset)
        return dataset, dataset.test

    def lies_at(self, paths: Sequence[Path | str]) -> bool:
        """Return whether the paths are those of the run's own data."""
        return [Path(path).resolve() for path in paths] == [Path(path).resolve() for path in self.data]

    def _membership(self, paths: Sequence[Path], best: bool = False) -> Membership:
        return Membership(self.known, resumed=True, same_place=self.lies_at(paths), best=best)

    def _why_none_was_held_out(self) -> str:
        if self.folder is None:
            return ""
        if self.known is None:
            return f", and no record of what training held out ({FILE}): an earlier version began this run"
        return ", and none of the images that training held out"

    def _note_missing_record(self, dataset: Dataset) -> None:
        if self.folder is not None and self.known is None:
            dataset.notes.append(
                f"{self.folder} has no record of its images ({FILE}): an earlier version began it, so "
                "nothing shows whether test images were trained on"
            )


def _join(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


def write_known(folder: Path, known: Known) -> None:
    """Record the images in the run folder.

    Raises:
        RunError: if it cannot be written.
    """
    content = io.BytesIO()
    np.savez_compressed(
        content,
        trained_contents=known.trained.contents,
        trained_names=known.trained.names,
        tested_contents=known.tested.contents,
        tested_names=known.tested.names,
        chosen_contents=known.chosen.contents,
        chosen_names=known.chosen.names,
    )
    write_atomically(folder / FILE, content.getbuffer())


def read_known(folder: Path) -> Known | None:
    """Read the record; None if the run was begun by a version that kept none.

    Raises:
        RunError: if it is damaged.
    """
    file = folder / FILE
    try:
        with np.load(file) as arrays:
            # Earlier versions knew no validation images.
            parts = [part for part in ("trained", "tested", "chosen") if f"{part}_contents" in arrays]
            found = {part: Identities(arrays[f"{part}_contents"], arrays[f"{part}_names"]) for part in parts}
            return Known(found["trained"], found["tested"], found.get("chosen", NONE))
    except FileNotFoundError:
        return None
    # Damaged archives raise errors of zipfile, zlib and numpy.
    except Exception as error:
        raise RunError(f"{file}: damaged ({error})") from error
