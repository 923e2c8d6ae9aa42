"""Choose the images on which the members of an ensemble disagree most, and copy them for labelling."""

import csv
import heapq
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from coserve_client.collection import Collection, class_folders
from coserve_client.errors import InputError
from coserve_client.images import Source, read_image
from coserve_client.replies import Model, Result

TABLE = "disagreement.csv"


@dataclass(frozen=True)
class Quota:
    """How many images to keep: a number, or a share of the classified ones."""

    number: int | None = None
    share: float = 1.0

    def of(self, images: int) -> int:
        """Return the number of images to keep of `images`; of a share, at least one image."""
        if self.number is not None:
            return min(self.number, images)
        # Rounded first: 100 * 0.07 is more than 7.
        return min(images, max(1, math.ceil(round(images * self.share, 6))))


@dataclass(frozen=True)
class Disputed:
    """An image and what the members made of it.

    Attributes:
        name: name of the image in messages and tables.
        source: its file.
        result: its result, with the members' predictions.
    """

    name: str
    source: Source
    result: Result


@dataclass
class MostDisputed:
    """The images whose members disagree most, out of any number; others are forgotten.

    Images of equal disagreement are ranked by entropy, then by the order in which they were added.

    Attributes:
        limit: number of images to remember.
        seen: number of images added.
    """

    limit: int
    seen: int = 0
    _heap: list[tuple[float, float, int, Disputed]] = field(default_factory=list)

    def add(self, image: Disputed) -> None:
        """Consider an image."""
        uncertainty = image.result.uncertainty
        # The counter makes all ranks different, so that images are never compared.
        ranked = (uncertainty.disagreement, uncertainty.entropy, -self.seen, image)
        self.seen += 1
        if len(self._heap) < self.limit:
            heapq.heappush(self._heap, ranked)
        else:
            heapq.heappushpop(self._heap, ranked)

    def most(self, number: int) -> list[Disputed]:
        """Return up to `number` images, the highest disagreement first."""
        return [image for *_, image in sorted(self._heap, reverse=True)[:number]]


@dataclass
class Kept:
    """What has been kept.

    Attributes:
        copied: images that were copied.
        present: images that already lay in the folder.
        table: the table of all of them; None if there are none.
        errors: why images could not be copied.
    """

    copied: list[Disputed] = field(default_factory=list)
    present: list[Disputed] = field(default_factory=list)
    table: Path | None = None
    errors: list[InputError] = field(default_factory=list)


def keep(images: Sequence[Disputed], collection: Collection, model: Model) -> Kept:
    """Copy images into class folders of a collection, and add a table of the members' opinions.

    Args:
        images: the images, the highest disagreement first.
        collection: where to copy them.
        model: the ensemble that classified them.

    Raises:
        InputError: the collection cannot be written.
    """
    folders = class_folders(model.labels)
    kept = Kept()
    rows = []
    for image in images:
        try:
            content = read_image(image.source, 0)
        except InputError as error:
            kept.errors.append(error)
            continue
        predicted = image.result.predictions[0].class_id
        place, is_new = collection.add(content, folders[predicted])
        (kept.copied if is_new else kept.present).append(image)
        rows.append(_row(image, place, model.members))
    if rows:
        kept.table = collection.write(TABLE, _csv(model.members, rows))
    return kept


def _row(image: Disputed, place: Path, members: Sequence[str]) -> list[object]:
    result = image.result
    first = result.predictions[0]
    uncertainty = result.uncertainty
    row: list[object] = [place.as_posix(), image.name, first.label, f"{first.probability:.4f}"]
    row += [f"{uncertainty.disagreement:.4f}", f"{uncertainty.entropy:.4f}"]
    for member in members:
        # A member that did not answer in time has no opinion.
        own = (result.member_predictions or {}).get(member)
        row += [own[0].label, f"{own[0].probability:.4f}"] if own else ["", ""]
    return row


def _csv(members: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    header = ["file", "source", "prediction", "probability", "disagreement", "entropy"]
    for member in members:
        header += [member, f"{member}_probability"]
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode("utf-8", "backslashreplace")
