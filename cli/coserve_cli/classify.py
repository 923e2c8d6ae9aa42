"""`coserve classify`."""

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeAlias

import typer

from coserve_cli.errors import one_line

if TYPE_CHECKING:
    from rich.progress import Progress

    from coserve_client import CoserveError, Prediction, Reply, Result, Source

Ask: TypeAlias = "Callable[[list[Source]], Reply]"

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})

# Half of what a server accepts in one request unless told otherwise.
BATCH_BYTES = 16 * 2**20


class _Item(NamedTuple):
    """An image by the name the user knows it by, and its size in bytes."""

    name: str
    source: "Source"
    size: int


def classify(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE",
            help="Image files, folders searched for them, or - for standard input.",
        ),
    ],
    url: Annotated[
        str, typer.Option(envvar="COSERVE_URL", help="The server's address.")
    ] = "http://127.0.0.1:8000",
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="COSERVE_API_KEY",
            help="A key, where the server asks for one; other users may read it on the command line.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The ensemble to ask; may be left out where the server has a default.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to show per image.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per request.")] = 16,
    member_predictions: Annotated[
        bool, typer.Option("--member-predictions", help="Show each member's own predictions too.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per image and line.")
    ] = False,
) -> None:
    """Classify images with a running server.

    Images that cannot be read or are rejected are reported, the others classified; the status is then 1.
    """
    from functools import partial

    from coserve_client import Client, CoserveError

    headers = {"X-API-Key": api_key} if api_key else None
    with one_line(CoserveError), Client(url, headers=headers) as client:
        items = [item for path in images for item in _items(path)]
        batches = list(_batches(items, batch_size))
        ask = partial(client.classify, model=model, top_k=top_k, member_predictions=member_predictions)
        report = _Report(as_json, width=max(len(item.name) for item in items))
        with _progress(visible=len(batches) > 1) as progress:
            task = progress.add_task("classifying", total=len(items))
            for batch, outcome in _outcomes(ask, batches):
                # The bar and the results may share one terminal.
                progress.stop()
                report.add([item.name for item in batch], outcome)
                progress.start()
                progress.advance(task, len(batch))
        report.finish()


def _items(path: Path) -> Iterator[_Item]:
    from coserve_client import Image, InputError

    if str(path) == "-":
        data = sys.stdin.buffer.read()
        yield _Item("-", Image(data, "stdin"), len(data))
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise InputError(f"no images in {path}: no file there ends in {' '.join(sorted(SUFFIXES))}")
        yield from (_Item(typer.format_filename(file), file, file.stat().st_size) for file in files)
    else:
        yield _Item(typer.format_filename(path), path, path.stat().st_size if path.is_file() else 0)


def _batches(items: list[_Item], batch_size: int) -> Iterator[list[_Item]]:
    """Split into runs of at most `batch_size` images and `BATCH_BYTES`; a larger image is its own run."""
    batch: list[_Item] = []
    for item in items:
        full = len(batch) == batch_size or sum(one.size for one in batch) + item.size > BATCH_BYTES
        if batch and full:
            yield batch
            batch = []
        batch.append(item)
    yield batch


def _outcomes(
    ask: Ask, batches: Iterable[list[_Item]]
) -> "Iterator[tuple[list[_Item], Reply | CoserveError]]":
    """Ask batch by batch; a rejected batch again image by image, so that a bad one costs only itself."""
    from coserve_client import InputError, RejectedError

    for batch in batches:
        try:
            outcome: Reply | CoserveError = ask([item.source for item in batch])
        except (InputError, RejectedError) as error:
            outcome = error
        if len(batch) > 1 and isinstance(outcome, (InputError, RejectedError)):
            yield from _outcomes(ask, ([item] for item in batch))
        else:
            yield batch, outcome


def _progress(visible: bool) -> "Progress":
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, force_terminal=sys.stderr.isatty())
    return Progress(
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        disable=not (visible and console.is_interactive),
    )


@dataclass
class _Report:
    """Prints outcomes as they come: results on stdout, what went wrong on stderr."""

    as_json: bool
    width: int
    failed: int = 0
    replies: "list[Reply]" = field(default_factory=list)

    def add(self, names: list[str], outcome: "Reply | CoserveError") -> None:
        from coserve_client import CoserveError, InputError

        if isinstance(outcome, CoserveError):
            self.failed += len(names)
            # An InputError says itself which file it is about, by the same name.
            about = "" if isinstance(outcome, InputError) else f"{names[0]}: "
            typer.echo(f"error: {about}{outcome}", err=True)
            return
        self.replies.append(outcome)
        for name, result in zip(names, outcome.results, strict=True):
            for line in [_json(name, result, outcome)] if self.as_json else self._lines(name, result):
                typer.echo(line)

    def _lines(self, name: str, result: "Result") -> Iterator[str]:
        yield f"{name:<{self.width}}  {_percentages(result.predictions)}"
        for member, predictions in (result.member_predictions or {}).items():
            yield f"{'  ' + member:<{self.width}}  {_percentages(predictions)}"

    def finish(self) -> None:
        """Print what holds for all replies.

        Raises:
            typer.Exit: with status 1, where an image failed.
        """
        if self.replies and not self.as_json:
            overlap = statistics.fmean(reply.overlap for reply in self.replies)
            last = self.replies[-1]
            typer.echo(
                f"{last.model} version {last.version}: {len(last.members)} members, overlap {overlap:.2f}"
            )
        if degraded := [reply for reply in self.replies if reply.degraded]:
            missing = {member.name: member.error for reply in degraded for member in reply.missing}
            members = ", ".join(f"{name} ({error or 'no reason given'})" for name, error in missing.items())
            typer.echo(
                f"warning: {len(degraded)} of {len(self.replies)} replies lack members: {members}", err=True
            )
        if self.failed:
            raise typer.Exit(1)


def _percentages(predictions: "Iterable[Prediction]") -> str:
    return "  ".join(f"{prediction.label} {prediction.probability:.1%}" for prediction in predictions)


def _json(name: str, result: "Result", reply: "Reply") -> str:
    content = asdict(result)
    del content["filename"]
    of_reply = {
        "model": reply.model,
        "version": reply.version,
        "degraded": reply.degraded,
        "missing": [member.name for member in reply.missing],
        "overlap": reply.overlap,
    }
    return json.dumps({"file": name, **of_reply, **content})
