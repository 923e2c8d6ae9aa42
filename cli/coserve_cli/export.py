"""`coserve export`."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coserve_cli.checkpoint import Checkpoint
from coserve_cli.errors import one_line

if TYPE_CHECKING:
    from coserve_export.report import Report

FOR_RUNS, FOR_FILES = "For a run", "For ONNX files"


class Precision(str, Enum):
    """Of weights and arithmetic."""

    fp32 = "fp32"
    fp16 = "fp16"


class Interpolation(str, Enum):
    """How images are resized."""

    bilinear = "bilinear"
    bicubic = "bicubic"


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers like 0.49,0.48,0.44") from None


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    try:
        return int(height), int(width or height)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a size like 224, or 224x320 (height x width)") from None


def export(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN | NETWORK.onnx…", help="A run of coserve train, or one ONNX file per member."
        ),
    ],
    repository: Annotated[
        Path, typer.Option(metavar="DIR", help="The model repository to write to; made if need be.")
    ],
    name: Annotated[
        str | None, typer.Option(help="The ensemble's name; of a run by default network and split.")
    ] = None,
    max_batch_size: Annotated[int, typer.Option(min=1, help="Of every model.")] = 64,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an ensemble of the same name.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was written as JSON.")] = False,
    precision: Annotated[
        Precision | None,
        typer.Option(help="Of weights and arithmetic; fp32 by default.", rich_help_panel=FOR_RUNS),
    ] = None,
    checkpoint: Annotated[
        Checkpoint | None, typer.Option(help="last by default.", rich_help_panel=FOR_RUNS)
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="One label per line, by class index. Needed.", rich_help_panel=FOR_FILES),
    ] = None,
    mean: Annotated[
        Any | None,
        typer.Option(
            parser=_numbers,
            metavar="R,G,B",
            help="Subtracted from pixel / 255. Needed.",
            rich_help_panel=FOR_FILES,
        ),
    ] = None,
    std: Annotated[
        Any | None,
        typer.Option(parser=_numbers, metavar="R,G,B", help="Divided by. Needed.", rich_help_panel=FOR_FILES),
    ] = None,
    resize_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="The shorter side before the central crop; by default the input's longer side.",
            rich_help_panel=FOR_FILES,
        ),
    ] = None,
    stretch: Annotated[
        bool | None,
        typer.Option(
            "--stretch", help="Resize to the input's size exactly, without crop.", rich_help_panel=FOR_FILES
        ),
    ] = None,
    interpolation: Annotated[
        Interpolation | None, typer.Option(help="bilinear by default.", rich_help_panel=FOR_FILES)
    ] = None,
    image_size: Annotated[
        Any | None,
        typer.Option(
            parser=_size,
            metavar="H[xW]",
            help="Where the files leave the size free.",
            rich_help_panel=FOR_FILES,
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(
            help="The logits' name, where the files have several outputs.", rich_help_panel=FOR_FILES
        ),
    ] = None,
    weights: Annotated[
        Any | None,
        typer.Option(
            parser=_numbers, metavar="W,W,…", help="Of the members in the mean.", rich_help_panel=FOR_FILES
        ),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            help="A folder of images to try the networks on; random ones by default.",
            rich_help_panel=FOR_FILES,
        ),
    ] = None,
) -> None:
    """Write an ensemble into a Triton model repository, once its ONNX networks have passed their checks.

    The networks of a run are compared with torch on held-out images. ONNX files are run alone and in batches.
    """
    from coserve_export.errors import DescriptionError, ExportError

    common = {"name": name, "max_batch_size": max_batch_size, "overwrite": overwrite}
    for_runs = _given(precision=precision, checkpoint=checkpoint)
    for_files = _given(
        labels=labels,
        mean=mean,
        std=std,
        resize_size=resize_size,
        stretch=stretch,
        interpolation=interpolation,
        image_size=image_size,
        output=output,
        weights=weights,
        samples=samples,
    )
    with one_line(ExportError):
        are_files = _are_files(sources)
        misplaced = for_runs if are_files else for_files
        if misplaced:
            options = ", ".join(f"--{option.replace('_', '-')}" for option in misplaced)
            raise DescriptionError(f"{options} cannot be used with {'ONNX files' if are_files else 'a run'}")
        write = _export_files if are_files else _export_run
        report = write(sources, repository, common | (for_files if are_files else for_runs))
    _print(report, as_json)


def _given(**options: object) -> dict[str, Any]:
    """Options that were given, with plain values."""
    return {
        key: value.value if isinstance(value, Enum) else value
        for key, value in options.items()
        if value is not None
    }


def _are_files(sources: list[Path]) -> bool:
    from coserve_export.errors import DescriptionError

    missing = [str(source) for source in sources if not source.exists()]
    if missing:
        raise DescriptionError(f"{', '.join(missing)} does not exist")
    if all(source.is_file() and source.suffix == ".onnx" for source in sources):
        return True
    if len(sources) == 1 and sources[0].is_dir():
        return False
    raise DescriptionError("give either one run folder, or ONNX files (*.onnx) alone")


def _export_run(sources: list[Path], repository: Path, options: dict[str, Any]) -> "Report":
    from coserve_export.trained import export_run
    from coserve_training.errors import TrainingError

    with one_line(TrainingError), _progress() as progress:
        return export_run(sources[0], repository, progress=progress, **options)


def _export_files(sources: list[Path], repository: Path, options: dict[str, Any]) -> "Report":
    from coserve_export.errors import DescriptionError
    from coserve_export.existing import export_onnx

    needed = ("name", "labels", "mean", "std")
    missing = ", ".join(f"--{option}" for option in needed if options.get(option) is None)
    if missing:
        raise DescriptionError(f"ONNX files also need {missing}")
    with _progress() as progress:
        return export_onnx(sources, repository=repository, progress=progress, **options)


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line that says what is being done, on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("checking") as status:
        yield status.update


def _print(report: "Report", as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
        return
    rows = [(member.name, f"{member.bytes / 1e6:.1f} MB", member.parity) for member in report.members]
    rows.append((report.name, f"{report.classes} classes", report.parity))
    width = max(len(name) for name, _, _ in rows)
    for name, size, parity in rows:
        line = f"{name:<{width}}  {size:>12}"
        if parity is not None:
            line += f"  largest difference {parity.max_abs_difference:.1e}"
            line += f"  top-1 agreement {parity.top1_agreement:.2%} of {parity.images} images"
        typer.echo(line)
    typer.echo(f"written to {report.repository}")
