"""Decide which images are trained on and which are held out, and keep to it.

What was trained on never becomes a test image, and what was held out never becomes a training image. Images
that are added to `train/` are trained on; images that are added to `test/` are test images. Validation images
are held out like test images.
"""

import functools
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
        best: the networks are those of the best epoch; note the test images that chose it.
    """

    def __init__(
        self,
        known: Known | None = None,
        *,
        resumed: bool = False,
        same_place: bool = True,
        best: bool = False,
    ) -> None:
        self.recorded = known is not None
        self.known = known or Known()
        self.resumed = resumed
        self.same_place = same_place
        self.best = best
        self.added = 0
        """Number of training images that the resumed run had not seen before."""

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
        trained, tested, chosen = self.known.find(images, self.same_place)
        to_hold = tested & ~trained
        splits = {name: identify(sources[name][0]) for name in ("val", "test") if name in sources}
        for name, split in splits.items():
            self._refuse_trained(name, sources[name][0], split)
        if "test" in splits:
            if not self.resumed or not self.recorded:
                to_hold[:] = False
                for name, split in splits.items():
                    notes += _note_copies(name, sources[name][0], images.matches(split))
        elif self.resumed and not self.recorded:
            raise DataError(
                "there is no test split, and this run has no record of what training held out: an earlier "
                "version began it; train again, or add a test split with other images"
            )
        elif not self.resumed:
            _hold_out(to_hold, ~trained & ~tested, images, targets)
            _check_held_out(labels, targets, to_hold, of_new=bool((trained | tested).any()))
        held_out = functools.reduce(Identities.concatenate, splits.values(), NONE)
        if self.resumed and self.recorded:
            notes += self._note_changes(images.concatenate(held_out), ~(trained | tested))
        # An image that was moved out of its split and back lies in both places.
        moved = to_hold & ~held_out.matches(images)
        result = sources | {"train": (files[~to_hold], targets[~to_hold])}
        for name, part in (("val", moved & chosen), ("test", moved & ~chosen)):
            if part.any():
                found = (files[part], targets[part])
                result[name] = _join(sources[name], found) if name in sources else found
        if "test" not in sources and moved.any():
            notes.append(f"no test split: {moved.sum()} of {len(files)} training images are held out")
        elif to_hold.any():
            notes.append(f"{to_hold.sum()} test images lie in train/ now; they are not trained on")
        if "val" in splits and "test" in splits:
            notes += self._note_copies_of_val(sources["test"][0], splits["test"], splits["val"])
        self.known = Known(
            self.known.trained.join(images.select(~to_hold)),
            self.known.tested.join(images.select(to_hold)).join(held_out),
            self.known.chosen.join(splits.get("val", NONE)),
        )
        return result, notes

    def for_testing(
        self, labels: Sequence[str], sources: Sources, identify: Identify
    ) -> tuple[Sources, list[str]]:
        """Keep the test and validation images. Without any, keep the images that training held out.

        Raises:
            DataError: for a test or validation image that was trained on.
        """
        if "test" in sources:
            splits = {name: source for name, source in sources.items() if name != "train"}
            images = {name: identify(files) for name, (files, _) in splits.items()}
            for name, (files, _) in splits.items():
                self._refuse_trained(name, files, images[name])
            notes = self._note_copies_of_val(splits["test"][0], images["test"], images.get("val", NONE))
            for name, (files, _) in splits.items():
                notes += _note_repeated(name, files, images[name])
            return splits, notes + self._note_choosing(images["test"])
        files, targets = sources["train"]
        found = identify(files)
        trained, tested, chosen = self.known.find(found, self.same_place)
        held_out = tested & ~trained & ~chosen
        if not held_out.any():
            return {}, []
        notes = _note_repeated("held-out", files[held_out], found.select(held_out))
        if new := int((~trained & ~tested).sum()):
            notes.append(f"{new} images in train/ were added since training, and are not evaluated")
        if gone := self.known.tested.count_missing(found):
            notes.append(f"{gone} of the images that training held out are gone")
        notes += self._note_choosing(found.select(held_out))
        return {"test": (files[held_out], targets[held_out])}, notes

    def for_calibration(
        self, labels: Sequence[str], sources: Sources, identify: Identify
    ) -> tuple[Sources, list[str]]:
        """Keep the training images; without any, the validation images; without these, the test images.

        Images that are scored are left out. What is kept is returned as the test split.
        """
        name = next(name for name in ("train", "val", "test") if name in sources)
        files, targets = sources[name]
        _, tested, chosen = self.known.find(identify(files), self.same_place)
        scored = tested & ~chosen
        notes = []
        if scored.any():
            notes.append(
                f"{scored.sum()} of {len(files)} images in {name}/ are test images; nothing is "
                "calibrated on them"
            )
        # A training split would need images of every class.
        return ({} if scored.all() else {"test": (files[~scored], targets[~scored])}), notes

    def _refuse_trained(self, split: str, files: npt.NDArray[Any], images: Identities) -> None:
        trained, tested, _ = self.known.find(images, self.same_place)
        if (wrong := np.flatnonzero(trained & ~tested)).size:
            raise DataError(
                f"{len(wrong)} of {len(files)} {split} images were trained on: "
                f"{name_some([name_image(files, index) for index in wrong.tolist()])}; take them out of the "
                f"{split} split"
            )

    def _note_copies_of_val(self, files: npt.NDArray[Any], test: Identities, val: Identities) -> list[str]:
        """Name test images that choose the best epoch, or have chosen it, as validation images."""
        copies = self.known.chosen.join(val).matches(test)
        if not copies.any():
            return []
        names = name_some([name_image(files, index) for index in np.flatnonzero(copies).tolist()])
        return [
            f"{copies.sum()} test images are validation images too, so scores of the best epoch and of "
            f"calibration are too good: {names}"
        ]

    def _note_choosing(self, test: Identities) -> list[str]:
        """Note that test images have chosen the best epoch; `_note_copies_of_val` names copies of others."""
        _, tested, _ = self.known.find(test, self.same_place)
        if not self.best or len(self.known.chosen) or not tested.any():
            return []
        some = "these" if tested.all() else f"{tested.sum()} of these {len(tested)}"
        return [
            f"best.ckpt was chosen by its accuracy on {some} images, so its scores are too good; a val split "
            "beside a test split avoids this"
        ]

    def _note_changes(self, present: Identities, new: Mask) -> list[str]:
        notes = []
        self.added = int(new.sum())
        if self.added:
            notes.append(f"{self.added} images were added to train/, and are trained on from now on")
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


def _check_held_out(labels: Sequence[str], targets: Indices, held_out: Mask, of_new: bool) -> None:
    counts = np.bincount(targets[held_out], minlength=len(labels))
    if few := [label for label, count in zip(labels, counts, strict=True) if not count]:
        unknown = " that the initial run does not know" if of_new else ""
        raise DataError(
            f"there is no test split, and some classes have fewer than {HOLD_OUT} training images{unknown}, "
            f"too few to hold one out: {name_some(few)}"
        )


def _note_copies(split: str, files: npt.NDArray[Any], copies: Mask) -> list[str]:
    if not copies.any():
        return []
    names = [name_image(files, index) for index in np.flatnonzero(copies).tolist()]
    return [
        f"{len(names)} {split} images are training images too, so scores are too good: {name_some(names)}"
    ]


def _note_repeated(split: str, files: npt.NDArray[Any], images: Identities) -> list[str]:
    readable = np.flatnonzero(images.contents)
    _, first = np.unique(images.contents[readable], return_index=True)
    repeated = np.delete(readable, first)
    if not repeated.size:
        return []
    names = name_some([name_image(files, index) for index in repeated.tolist()])
    return [f"{len(repeated)} of {len(files)} {split} images are copies of others, and count again: {names}"]


def _join(
    some: tuple[npt.NDArray[Any], Indices], others: tuple[npt.NDArray[Any], Indices]
) -> tuple[npt.NDArray[Any], Indices]:
    return np.concatenate([some[0], others[0]]), np.concatenate([some[1], others[1]])
