"""Decide which images are trained on and which are held out, and keep to it.

What was trained on never becomes a test image, and what was held out never becomes a training image. Images
that are added to `train/` are trained on; images that are added to `test/` are test images.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from coserve_training.data.identity import NONE, Identities, Known, Mask, name_image
from coserve_training.data.lazy import Indices
from coserve_training.data.naming import name_some
from coserve_training.errors import DataError

HOLD_OUT = 10
"""If a data set has no test split, every tenth training image of each class is held out."""

Sources = dict[str, tuple[npt.NDArray[Any], Indices]]
"""By split: the sources that `LazyImages` reads, and the classes `[N]`."""
Identify = Callable[[npt.NDArray[Any]], Identities]
Assign = Callable[[Sequence[str], Sources, Identify], tuple[Sources, list[str]]]
"""Moves images between splits. Takes labels, sources and `identify`; returns sources and lines to report."""


class Membership:
    """The images of a run.

    Args:
        known: images that the run, or the run it starts from, was trained and tested on.
        resumed: the run has begun already. It holds no further images out.
        same_place: the data are the run's own, so that a mended image is recognised by its name.
    """

    def __init__(self, known: Known | None = None, *, resumed: bool = False, same_place: bool = True) -> None:
        self.recorded = known is not None
        self.known = known or Known()
        self.resumed = resumed
        self.same_place = same_place

    def for_training(
        self, labels: Sequence[str], sources: Sources, identify: Identify
    ) -> tuple[Sources, list[str]]:
        """Split images into training and test images, and remember them in `known`.

        Raises:
            DataError: for a test image that was trained on, or a class too small to hold an image out of.
        """
        if "train" not in sources:
            return sources, []
        notes = []
        files, targets = sources["train"]
        images = identify(files)
        trained, tested = self.known.find(images, self.same_place)
        to_test = tested & ~trained
        test = sources.get("test")
        test_images = NONE
        if test is not None:
            test_images = identify(test[0])
            self._refuse_trained(test[0], test_images)
            if not self.resumed or not self.recorded:
                to_test[:] = False
                notes += _note_copies(test[0], images.matches(test_images))
        elif self.resumed and not self.recorded:
            raise DataError(
                "there is no test split, and this run has no record of what training held out: an earlier "
                "version began it; train again, or add a test split with other images"
            )
        elif not self.resumed:
            _hold_out(to_test, ~trained & ~tested, images, targets)
            _check_held_out(labels, targets, to_test)
        present = Identities(
            np.concatenate([images.contents, test_images.contents]),
            np.concatenate([images.names, test_images.names]),
        )
        if self.resumed and self.recorded:
            notes += self._note_changes(present, ~(trained | tested))
        # An image that was moved from the test split and back lies in both places.
        moved = to_test & ~test_images.matches(images)
        held_out = (files[moved], targets[moved])
        result = {"train": (files[~to_test], targets[~to_test])}
        if test is None and moved.any():
            result["test"] = held_out
            notes.append(f"no test split: {moved.sum()} of {len(files)} training images are held out")
        elif test is not None:
            result["test"] = _join(test, held_out) if moved.any() else test
            if to_test.any():
                notes.append(f"{to_test.sum()} test images lie in train/ now; they are not trained on")
        self.known = Known(
            self.known.trained.join(images.select(~to_test)),
            self.known.tested.join(images.select(to_test)).join(test_images),
        )
        return result, notes

    def for_testing(
        self, labels: Sequence[str], sources: Sources, identify: Identify
    ) -> tuple[Sources, list[str]]:
        """Keep the test images. Without a test split, these are the images that training held out.

        Raises:
            DataError: for a test image that was trained on.
        """
        if "test" in sources:
            files, _ = sources["test"]
            self._refuse_trained(files, identify(files))
            return {"test": sources["test"]}, []
        files, targets = sources["train"]
        images = identify(files)
        trained, tested = self.known.find(images, self.same_place)
        held_out = tested & ~trained
        if not held_out.any():
            return {}, []
        notes = []
        if new := int((~trained & ~tested).sum()):
            notes.append(f"{new} images in train/ were added since training, and are not evaluated")
        if gone := self.known.tested.count_missing(images):
            notes.append(f"{gone} of the images that training held out are gone")
        return {"test": (files[held_out], targets[held_out])}, notes

    def for_calibration(
        self, labels: Sequence[str], sources: Sources, identify: Identify
    ) -> tuple[Sources, list[str]]:
        """Keep the training images, or without any, the test images. Leave out those that were tested on.

        They are returned as the test split.
        """
        for split in ("train", "test"):
            if split not in sources:
                continue
            files, targets = sources[split]
            _, tested = self.known.find(identify(files), self.same_place)
            notes = []
            if tested.any():
                notes.append(
                    f"{tested.sum()} of {len(files)} images in {split}/ are test images; nothing is "
                    "calibrated on them"
                )
            # A training split would need images of every class.
            return ({} if tested.all() else {"test": (files[~tested], targets[~tested])}), notes
        return {}, []

    def _refuse_trained(self, files: npt.NDArray[Any], images: Identities) -> None:
        trained, tested = self.known.find(images, self.same_place)
        if (wrong := np.flatnonzero(trained & ~tested)).size:
            raise DataError(
                f"{len(wrong)} of {len(files)} test images were trained on: "
                f"{name_some([name_image(files, index) for index in wrong.tolist()])}; take them out of the "
                "test split"
            )

    def _note_changes(self, present: Identities, new: Mask) -> list[str]:
        notes = []
        if new.any():
            notes.append(f"{new.sum()} images were added to train/, and are trained on from now on")
        trained = self.known.trained.count_missing(present)
        tested = self.known.tested.count_missing(present)
        if trained or tested:
            notes.append(f"{trained} training images and {tested} test images are gone")
        return notes


def _hold_out(held_out: Mask, new: Mask, images: Identities, targets: Indices) -> None:
    """Mark every `HOLD_OUT`th new image of each class in `held_out`; copies of an image go with it."""
    for label in np.unique(targets):
        members = np.flatnonzero((targets == label) & new)
        # An unreadable image has no content; it counts as one of its own.
        keys = np.where(images.contents[members] == 0, images.names[members], images.contents[members])
        if images.names.any() or images.contents.all():
            _, first = np.unique(keys, return_index=True)
            members = members[np.sort(first)]
        held_out[members[HOLD_OUT - 1 :: HOLD_OUT]] = True
    held_out |= new & images.select(held_out).matches(images)


def _check_held_out(labels: Sequence[str], targets: Indices, held_out: Mask) -> None:
    counts = np.bincount(targets[held_out], minlength=len(labels))
    if few := [label for label, count in zip(labels, counts, strict=True) if not count]:
        raise DataError(
            f"there is no test split, and some classes have fewer than {HOLD_OUT} training images, "
            f"too few to hold one out: {name_some(few)}"
        )


def _note_copies(files: npt.NDArray[Any], copies: Mask) -> list[str]:
    if not copies.any():
        return []
    names = [name_image(files, index) for index in np.flatnonzero(copies).tolist()]
    return [f"{len(names)} test images are training images too, so scores are too good: {name_some(names)}"]


def _join(
    some: tuple[npt.NDArray[Any], Indices], others: tuple[npt.NDArray[Any], Indices]
) -> tuple[npt.NDArray[Any], Indices]:
    return np.concatenate([some[0], others[0]]), np.concatenate([some[1], others[1]])
