"""`coserve classify`."""

import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from coserve_cli.errors import one_line
from coserve_cli.server_options import URL, ApiKey, CaCert, Certificate, Key, Model, Url

if TYPE_CHECKING:
    from rich.progress import Progress

    from coserve_client import Outcome, Prediction, Reply, Result, Source


class SetMethod(str, Enum):
    """How prediction sets are made; `coserve_client.SetMethod` without the client."""

    lac = "lac"
    raps = "raps"


class _Item(NamedTuple):
    """An image and its name on the command line."""

    name: str
    source: "Source"


def classify(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE",
            help="Image files, folders to search for images, or - for standard input.",
        ),
    ],
    url: Url = URL,
    api_key: ApiKey = None,
    cacert: CaCert = None,
    certificate: Certificate = None,
    key: Key = None,
    model: Model = None,
    model_version: Annotated[
        str | None, typer.Option(help="Version of the ensemble.", show_default="newest")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to print per image.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per request.")] = 16,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in progress at the same time.")] = 8,
    timeout_ms: Annotated[
        float | None,
        typer.Option(
            min=1, help="Milliseconds that the server may take per request.", show_default="the server's"
        ),
    ] = None,
    member_predictions: Annotated[
        bool, typer.Option("--member-predictions", help="Also print each member's predictions.")
    ] = False,
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Also print each image's prediction set, with this probability of holding the true class: "
            "one that the ensemble is calibrated for, such as 0.95.",
            show_default="no sets",
        ),
    ] = None,
    set_method: Annotated[
        SetMethod | None,
        typer.Option(
            help="How sets are made: lac gives the smallest ones on average, raps gives none that are empty.",
            show_default="lac",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON per image.")] = False,
) -> None:
    """Classify images with a running server.

    Images that cannot be read or that the server rejects are reported, and the others are classified. The
    exit status is then 1.
    """
    if key is not None and certificate is None:
        raise typer.BadParameter("--key needs --cert")
    if set_method is not None and coverage is None:
        raise typer.BadParameter("--set-method needs --coverage")

    import asyncio

    from coserve_client import AsyncClient, CoserveError

    client_certificate = (certificate, key) if certificate and key else certificate

    async def run() -> None:
        # Asynchronous, so that Ctrl-C stops at once; threads would first wait for their responses.
        async with AsyncClient(url, api_key=api_key, verify=cacert, certificate=client_certificate) as client:
            items = [item for path in images for item in _items(path)]
            outcomes = client.classify_many(
                (item.source for item in items),
                model=model,
                version=model_version,
                top_k=top_k,
                member_predictions=member_predictions,
                coverage=coverage,
                set_method=set_method.value if set_method else None,
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
    """Print outcomes as they arrive, in the order of the items, above a progress bar."""
    report = _Report(as_json, width=max(len(item.name) for item in items))
    remaining = iter(items)
    with _progress(visible) as progress:
        task = progress.add_task("classifying", total=len(items))
        async for outcome in outcomes:
            # The bar and the results may share a terminal.
            progress.stop()
            report.add(next(remaining).name, outcome)
            progress.start()
            progress.advance(task)
    report.finish()


def _items(path: Path) -> Iterator[_Item]:
    """Yield the image of a path, or all images of a folder."""
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
    """Prints outcomes as they arrive: results on stdout, errors on stderr."""

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
            # An InputError already names the file.
            prefix = "" if isinstance(outcome.error, InputError) else f"{name}: "
            typer.echo(f"error: {prefix}{outcome.error}", err=True)
            return
        self._count(outcome.reply)
        if self.as_json:
            typer.echo(_json(name, outcome.result, outcome.reply))
            return
        for line in self._lines(name, outcome.result, outcome.reply):
            typer.echo(line)

    def _count(self, reply: "Reply") -> None:
        """Count a reply once; its images follow each other."""
        if reply is self.last:
            return
        self.last = reply
        self.replies += 1
        self.degraded += reply.degraded
        self.overlaps += reply.overlap
        self.missing |= {member.name: member.error for member in reply.missing}

    def _lines(self, name: str, result: "Result", reply: "Reply") -> Iterator[str]:
        yield f"{name:<{self.width}}  {_percentages(result.predictions)}"
        for member, predictions in (result.member_predictions or {}).items():
            yield f"{'  ' + member:<{self.width}}  {_percentages(predictions)}"
        if reply.prediction_sets:
            title = f"  {100 * reply.prediction_sets.coverage:g}% set"
            yield f"{title:<{self.width}}  {_describe_set(result, reply)}"

    def finish(self) -> None:
        """Print a summary of all replies.

        Raises:
            typer.Exit: an image failed; the status is 1.
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


def _percentages(predictions: "Collection[Prediction]") -> str:
    """List predictions. Labels that several of them have are followed by the class index."""
    count = Counter(prediction.label for prediction in predictions)
    return "  ".join(
        f"{one.label}{f' (class {one.class_id})' if count[one.label] > 1 else ''} {one.probability:.1%}"
        for one in predictions
    )


def _describe_set(result: "Result", reply: "Reply") -> str:
    if result.prediction_set is None:
        answered = len(reply.members) - len(reply.missing)
        return f"not calibrated for answers of {answered} of {len(reply.members)} members"
    return _percentages(result.prediction_set) or "empty: no class is probable enough"


def _json(name: str, result: "Result", reply: "Reply") -> str:
    content = asdict(result)
    del content["filename"]
    reply_fields = {
        "model": reply.model,
        "version": reply.version,
        "degraded": reply.degraded,
        "missing": [member.name for member in reply.missing],
        "overlap": reply.overlap,
        "prediction_sets": asdict(reply.prediction_sets) if reply.prediction_sets else None,
    }
    return json.dumps({"file": name, **reply_fields, **content})
