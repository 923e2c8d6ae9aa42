"""`coserve classify --keep-disagreeing`: copies images that are worth labelling."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import typer

if TYPE_CHECKING:
    from coserve_client import AsyncClient, Model, Result, Source
    from coserve_client.disagreement import Quota


class Item(NamedTuple):
    """An image and its name on the command line."""

    name: str
    source: "Source"


def parse_quota(text: str) -> "Quota":
    """Parse a number of images, such as `100`, or a share of them, such as `5%`.

    Raises:
        typer.BadParameter: it is neither.
    """
    from coserve_client.disagreement import Quota

    if re.fullmatch(r"[0-9]{1,15}", text) and int(text) > 0:
        return Quota(number=int(text))
    if re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?%", text) and 0 < float(text[:-1]) <= 100:
        return Quota(share=float(text[:-1]) / 100)
    raise typer.BadParameter(f"--keep takes a number from 1, or a share from above 0% to 100%, not {text!r}")


async def choose_model(client: "AsyncClient", name: str | None, version: str | None) -> "Model":
    """Describe the ensemble that will answer.

    Raises:
        InputError: it has one member only, or the server has no default.
        CoserveError: the server does not describe it.
    """
    from coserve_client import InputError

    if name is None:
        default = await client.default_model()
        if default is None:
            served = ", ".join(model.name for model in await client.models())
            raise InputError(f"the server has no default ensemble: choose one with --model ({served})")
        name = default.name
    model = await client.model(name, version=version)
    if len(model.members) == 1:
        raise InputError(
            f"{model.name} has one member, which cannot disagree: choose an ensemble of several with --model"
        )
    return model


class Keeping:
    """Remembers the images on which the members disagree most, and copies them at the end."""

    def __init__(
        self, folder: Path, quota: "Quota", model: "Model", searched: Sequence[Path], items: Sequence[Item]
    ) -> None:
        """Check all that can be checked before classifying.

        Raises:
            InputError: an image cannot be copied, or nothing can be written to the folder.
        """
        from coserve_client import InputError
        from coserve_client.collection import Collection
        from coserve_client.disagreement import MostDisputed
        from coserve_client.images import SUFFIXES

        for item in items:
            if Path(item.name).suffix.lower() not in SUFFIXES:
                raise InputError(
                    f"{item.name} cannot be kept: --keep-disagreeing copies files whose names end in "
                    f"{' '.join(sorted(SUFFIXES))}"
                )
        for path in searched:
            # Path.is_dir would raise an error for what may not be looked up.
            is_folder = os.path.isdir(path)  # noqa: PTH112
            if is_folder and folder.resolve().is_relative_to(path.resolve()):
                raise InputError(
                    f"{folder} lies in {path}, which is searched for images: choose another folder"
                )
        self._quota = quota
        self._model = model
        self._collection = Collection(folder)
        self._disputed = MostDisputed(quota.of(len(items)))

    def add(self, item: Item, result: "Result") -> None:
        """Consider a classified image."""
        from coserve_client.disagreement import Disputed

        self._disputed.add(Disputed(item.name, item.source, result))

    def finish(self, to_stderr: bool) -> bool:
        """Copy the images, and print how many; return whether all could be copied.

        Raises:
            InputError: the folder cannot be written.
        """
        from coserve_client.disagreement import keep

        number = self._quota.of(self._disputed.seen)
        kept = keep(self._disputed.most(number), self._collection, self._model)
        for error in kept.errors:
            typer.echo(f"error: {error}", err=True)
        line = f"kept {len(kept.copied)} of {self._disputed.seen} images in {self._collection.folder}"
        if kept.present:
            line += f"; {len(kept.present)} were there already"
        typer.echo(f"{line}; see {kept.table}" if kept.table else line, err=to_stderr)
        return not kept.errors
