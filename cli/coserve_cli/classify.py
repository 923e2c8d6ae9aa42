"""`coserve classify`."""

import os
import sys
from collections.abc import AsyncIterator
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coserve_cli.classify_report import Report, progress_bar
from coserve_cli.errors import one_line
from coserve_cli.keep_disagreeing import Item, Keeping, choose_model, parse_quota
from coserve_cli.server_options import URL, ApiKey, CaCert, Certificate, Key, Model, Url, client_certificate

if TYPE_CHECKING:
    from coserve_client import Outcome, Source


class SetMethod(str, Enum):
    """How prediction sets are made; `coserve_client.SetMethod` without the client."""

    lac = "lac"
    raps = "raps"


class EarlyStop(str, Enum):
    """When images stop early; `coserve_client.EarlyStop` without the client."""

    off = "off"
    loaded = "loaded"
    always = "always"


def classify(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE",
            help="Image files, folders and zips to search for images, or - for standard input.",
            # The client names what cannot be read, and goes on.
            readable=False,
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
    early_stop: Annotated[
        EarlyStop | None,
        typer.Option(
            help="Ask members one after another until an image's answer is confident enough: while images "
            "wait for the engine (loaded), or always.",
            show_default="the server's",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON per image.")] = False,
    keep_disagreeing: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Copy the images on which the members disagree most to this folder, to be labelled.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(help="Images to copy: a number, or a share such as 5%.", show_default="100"),
    ] = None,
) -> None:
    """Classify images with a running server.

    Images, folders and zips that cannot be read, and images that the server rejects, are reported, and the
    others are classified. The exit status is then 1.
    """
    own = client_certificate(certificate, key)
    if set_method is not None and coverage is None:
        raise typer.BadParameter("--set-method needs --coverage")
    if keep is not None and keep_disagreeing is None:
        raise typer.BadParameter("--keep needs --keep-disagreeing")
    if keep_disagreeing is not None:
        if early_stop not in (None, EarlyStop.off):
            raise typer.BadParameter("--keep-disagreeing needs all members: leave out --early-stop")
        early_stop = EarlyStop.off
    quota = parse_quota(keep or "100")

    import asyncio

    from coserve_client import AsyncClient, CoserveError

    async def run() -> tuple[Report, Keeping | None]:
        # Asynchronous, so that Ctrl-C stops at once; threads would first wait for their responses.
        async with AsyncClient(url, api_key=api_key, verify=cacert, certificate=own) as client:
            found = [_find(path) for path in images]
            items = [item for listed, _ in found for item in listed]
            report = Report(
                as_json, member_predictions, width=max((len(item.name) for item in items), default=0)
            )
            for failure in (failure for _, failures in found for failure in failures):
                report.add("", failure)
            if not items:
                return report, None
            keeping = None
            if keep_disagreeing is not None:
                chosen = await choose_model(client, model, model_version)
                keeping = Keeping(keep_disagreeing, quota, chosen, images, items)
            outcomes = client.classify_many(
                (item.source for item in items),
                model=model,
                version=model_version,
                top_k=top_k,
                member_predictions=member_predictions or keeping is not None,
                coverage=coverage,
                set_method=set_method.value if set_method else None,
                early_stop=early_stop.value if early_stop else None,
                timeout_ms=timeout_ms,
                batch_size=batch_size,
                concurrency=concurrency,
            )
            await _print(items, outcomes, report, keeping, visible=len(items) > batch_size)
            return report, keeping

    with one_line(CoserveError):
        report, keeping = asyncio.run(run())
        report.finish()
        complete = keeping is None or keeping.finish(to_stderr=as_json)
    if report.failed or not complete:
        raise typer.Exit(1)


async def _print(
    items: list[Item],
    outcomes: "AsyncIterator[Outcome]",
    report: Report,
    keeping: Keeping | None,
    visible: bool,
) -> None:
    """Print outcomes as they arrive, in the order of the items, above a progress bar."""
    remaining = iter(items)
    with progress_bar(visible) as progress:
        task = progress.add_task("classifying", total=len(items))
        async for outcome in outcomes:
            item = next(remaining)
            # The bar and the results may share a terminal.
            progress.stop()
            report.add(item.name, outcome)
            progress.start()
            progress.advance(task)
            if keeping and outcome.result:
                keeping.add(item, outcome.result)


def _find(path: Path) -> "tuple[list[Item], list[Outcome]]":
    """Return the images of a path; if they cannot be found, none and an outcome that says so."""
    from coserve_client import InputError, Outcome

    try:
        return _items(path), []
    except InputError as error:
        return [], [Outcome(path, error=error)]


def _items(path: Path) -> list[Item]:
    """Return the image of a path, or all images of a folder or zip.

    Raises:
        InputError: standard input, the folder or the zip cannot be read, or holds no image.
    """
    from coserve_client import Image, InputError
    from coserve_client.images import SUFFIXES, images_in, images_in_zip

    if str(path) == "-":
        return [Item("-", Image(_read_stdin(), "stdin"))]
    # Path.is_dir would raise an error for what may not be looked up; reading it reports that.
    is_folder = os.path.isdir(path)  # noqa: PTH112
    if not is_folder and path.suffix.lower() != ".zip":
        return [Item(typer.format_filename(path), path)]
    files: list[Source] = list(images_in(path) if is_folder else images_in_zip(path))
    if not files:
        raise InputError(f"no images in {path}: no file there ends in {' '.join(sorted(SUFFIXES))}")
    return [Item(typer.format_filename(str(file)), file) for file in files]


def _read_stdin() -> bytes:
    from coserve_client import InputError

    # None if the process was started without one.
    if sys.stdin is None:
        raise InputError("cannot read standard input: it is closed")
    try:
        return sys.stdin.buffer.read()
    except OSError as error:
        raise InputError(f"cannot read standard input: {error.strerror or error}") from error
