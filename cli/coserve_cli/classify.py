"""`coserve classify`."""

import json
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from coserve_cli.errors import one_line
from coserve_cli.server_options import URL, ApiKey, CaCert, Certificate, Key, Model, Url

if TYPE_CHECKING:
    from rich.progress import Progress

    from coserve_client import Outcome, Prediction, Reply, Result, Source


class _Item(NamedTuple):
    """An image by the name the user knows it by."""

    name: str
    source: "Source"


def classify(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE",
            help="Image files, folders searched for them, or - for standard input.",
        ),
    ],
    url: Url = URL,
    api_key: ApiKey = None,
    cacert: CaCert = None,
    certificate: Certificate = None,
    key: Key = None,
    model: Model = None,
    model_version: Annotated[
        str | None, typer.Option(help="Version of the ensemble.", show_default="the newest")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to show per image.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per request.")] = 16,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 8,
    timeout_ms: Annotated[
        float | None,
        typer.Option(
            min=1, help="Milliseconds the server may take for a request.", show_default="the server's"
        ),
    ] = None,
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
    if key is not None and certificate is None:
        raise typer.BadParameter("--key needs --cert")

    import asyncio

    from coserve_client import AsyncClient, CoserveError

    shown = (certificate, key) if certificate and key else certificate

    async def run() -> None:
        # Asynchronous, because Ctrl-C ends that at once: threads would first get their answers.
        async with AsyncClient(url, api_key=api_key, verify=cacert, certificate=shown) as client:
            items = [item for path in images for item in _items(path)]
            outcomes = client.classify_many(
                (item.source for item in items),
                model=model,
                version=model_version,
                top_k=top_k,
                member_predictions=member_predictions,
                timeout_ms=timeout_ms,
                batch_size=batch_size,
                concurrency=concurrency,
            )
            await _print(items, outcomes, as_json, visible=len(items) > batch_size)

    with one_line(CoserveError):
        asyncio.run(run())


async def _print(
    items: list[_Item], outcomes: "AsyncIterator[Outcome]", as_json: bool, visible: bool
) -> None:
    """Print outcomes as they come, which is in the items' order, under a progress bar."""
    report = _Report(as_json, width=max(len(item.name) for item in items))
    remaining = iter(items)
    with _progress(visible) as progress:
        task = progress.add_task("classifying", total=len(items))
        async for outcome in outcomes:
            # The bar and the results may share one terminal.
            progress.stop()
            report.add(next(remaining).name, outcome)
            progress.start()
            progress.advance(task)
    report.finish()


def _items(path: Path) -> Iterator[_Item]:
    from coserve_client import Image, InputError
    from coserve_client.images import SUFFIXES, images_in

    if str(path) == "-":
        yield _Item("-", Image(sys.stdin.buffer.read(), "stdin"))
    elif path.is_dir():
        files = list(images_in(path))
        if not files:
            raise InputError(f"no images in {path}: no file there ends in {' '.join(sorted(SUFFIXES))}")
        yield from (_Item(typer.format_filename(file), file) for file in files)
    else:
        yield _Item(typer.format_filename(path), path)


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
    replies: int = 0
    degraded: int = 0
    overlaps: float = 0.0
    missing: dict[str, str | None] = field(default_factory=dict)
    last: "Reply | None" = None

    def add(self, name: str, outcome: "Outcome") -> None:
        from coserve_client import InputError

        if outcome.result is None or outcome.reply is None:
            self.failed += 1
            # An InputError says itself which file it is about, by the same name.
            about = "" if isinstance(outcome.error, InputError) else f"{name}: "
            typer.echo(f"error: {about}{outcome.error}", err=True)
            return
        self._count(outcome.reply)
        result, reply = outcome.result, outcome.reply
        for line in [_json(name, result, reply)] if self.as_json else self._lines(name, result):
            typer.echo(line)

    def _count(self, reply: "Reply") -> None:
        """Once for all images of a reply, which follow each other."""
        if reply is self.last:
            return
        self.last = reply
        self.replies += 1
        self.degraded += reply.degraded
        self.overlaps += reply.overlap
        self.missing |= {member.name: member.error for member in reply.missing}

    def _lines(self, name: str, result: "Result") -> Iterator[str]:
        yield f"{name:<{self.width}}  {_percentages(result.predictions)}"
        for member, predictions in (result.member_predictions or {}).items():
            yield f"{'  ' + member:<{self.width}}  {_percentages(predictions)}"

    def finish(self) -> None:
        """Print what holds for all replies.

        Raises:
            typer.Exit: with status 1, where an image failed.
        """
        if self.last and not self.as_json:
            typer.echo(
                f"{self.last.model} version {self.last.version}: {len(self.last.members)} members, "
                f"overlap {self.overlaps / self.replies:.2f}"
            )
        if self.degraded:
            members = ", ".join(
                f"{name} ({error or 'no reason given'})" for name, error in self.missing.items()
            )
            typer.echo(
                f"warning: {self.degraded} of {self.replies} replies lack members: {members}", err=True
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
