"""`coserve export`."""

import json
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coserve_cli import export_options as options
from coserve_cli.errors import one_line
from coserve_cli.progress import progress_bars, status_line

if TYPE_CHECKING:
    from coserve_export import Deployment, Int8, Report


def export(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN | NETWORK.onnx… | CHECKPOINT",
            help="A run folder of coserve train, one ONNX file per member, or a checkpoint that the paper's "
            "authors publish: a zip file, model_best.pth.tar or a link.",
        ),
    ],
    repository: Annotated[
        Path, typer.Option(metavar="DIR", help="Model repository to write to; created if needed.")
    ],
    name: Annotated[
        str | None,
        typer.Option(
            help="Name of the ensemble.", show_default="network and split; of a checkpoint also the data set"
        ),
    ] = None,
    max_batch_size: Annotated[
        int | None,
        typer.Option(min=1, max=options.INT32, help="Maximum batch size of every model.", show_default="64"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the ensemble of the same name.")
    ] = False,
    new_version: Annotated[
        bool, typer.Option("--new-version", help="Add a version to the ensemble of the same name.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    precision: options.Precision = None,
    calibration_data: options.CalibrationData = None,
    calibration_images: options.CalibrationImages = None,
    evaluation_data: options.EvaluationData = None,
    max_accuracy_loss: options.MaxAccuracyLoss = None,
    checkpoint: options.Checkpoint = None,
    network: options.Network = None,
    split: options.Split = None,
    dataset: options.Dataset = None,
    labels: options.Labels = None,
    mean: options.Mean = None,
    std: options.Std = None,
    resize_size: options.ResizeSize = None,
    stretch: options.Stretch = None,
    interpolation: options.Interpolation = None,
    image_size: options.ImageSize = None,
    output: options.Output = None,
    weights: options.Weights = None,
    samples: options.Samples = None,
    placement: options.Placement = None,
    cores: options.Cores = None,
    instances: options.Instances = None,
    threads: options.Threads = None,
    preferred_batch_sizes: options.PreferredBatchSizes = None,
    queue_delay_us: options.QueueDelayUs = None,
    parameter: options.Parameters = None,
    cuda: options.Cuda = None,
    tensorrt: options.TensorRt = None,
) -> None:
    """Export an ensemble to a Triton model repository, after checking its ONNX networks.

    The networks of a run are compared with torch on held-out images, those of a checkpoint on synthetic
    images. Existing ONNX files are checked on single images and on batches.
    """
    from coserve_export import ExportError

    is_int8 = precision == options.NetworkPrecision.int8
    for_torch = {} if is_int8 else _given(precision=precision)
    for_runs = _given(checkpoint=checkpoint)
    for_checkpoints = _given(network=network, split=split, dataset=dataset)
    for_int8 = _given(
        calibration_data=calibration_data,
        calibration_images=calibration_images,
        evaluation_data=evaluation_data,
        max_accuracy_loss=max_accuracy_loss,
    )
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
    for_triton = _given(
        placement=placement,
        cores=cores,
        instances=instances,
        threads=threads,
        preferred_batch_sizes=preferred_batch_sizes,
        queue_delay_us=queue_delay_us,
        parameter=parameter,
        cuda=cuda,
        tensorrt=tensorrt,
    )
    of_every_model = _given(max_batch_size=max_batch_size)
    with one_line(ExportError):
        if new_version:
            _refuse(for_triton | of_every_model, "--new-version: the ensemble keeps its configuration")
        common = {"name": name, "overwrite": overwrite, "new_version": new_version} | of_every_model
        write, taken = _choose(sources, for_torch, for_runs, for_checkpoints, for_files)
        if is_int8:
            common["int8"] = _int8(**for_int8)
        elif write is _export_checkpoint and set(for_int8) == {"evaluation_data"}:
            taken |= for_int8
        else:
            _refuse(for_int8, "another --precision than int8")
        if for_triton:
            common["deployment"] = _deployment(**for_triton)
        report = write(sources, repository, common | taken)
    _print(report, as_json)


def _choose(
    sources: list[str],
    for_torch: dict[str, Any],
    for_runs: dict[str, Any],
    for_checkpoints: dict[str, Any],
    for_files: dict[str, Any],
) -> tuple[Callable[[list[str], Path, dict[str, Any]], "Report"], dict[str, Any]]:
    """Return what exports sources of this kind, and the options for it; refuse those for other kinds."""
    from coserve_export import DescriptionError
    from coserve_export.sources import identify_sources

    kind = identify_sources(sources)
    if kind == "onnx":
        if for_torch:
            raise DescriptionError("--precision: ONNX files can only keep their precision or become int8")
        _refuse(for_runs | for_checkpoints, "ONNX files")
        return _export_files, for_files
    if kind == "run":
        _refuse(for_files | for_checkpoints, "a run")
        return _export_run, for_torch | for_runs
    shared = {key: for_files[key] for key in ("labels", "image_size") if key in for_files}
    others = {key: value for key, value in for_files.items() if key not in shared}
    _refuse(for_runs | others, "a checkpoint of the paper's authors")
    return _export_checkpoint, for_torch | for_checkpoints | shared


def _refuse(misplaced: dict[str, Any], context: str) -> None:
    """Refuse options that do not apply."""
    from coserve_export import DescriptionError

    if misplaced:
        names = ", ".join(f"--{option.replace('_', '-')}" for option in misplaced)
        raise DescriptionError(f"{names} cannot be used with {context}")


def _int8(calibration_data: Sequence[Path] = (), **options: Any) -> "Int8":
    from coserve_export import Int8

    return Int8(calibration_data, **options)


def _deployment(
    placement: str = "auto",
    preferred_batch_sizes: Iterable[int] = (),
    parameter: Iterable[tuple[str, str]] = (),
    cuda: Iterable[tuple[str, str]] = (),
    tensorrt: Iterable[tuple[str, str]] = (),
    **numbers: int,
) -> "Deployment":
    from coserve_export import Deployment, Placement

    return Deployment(
        placement=Placement.parse(placement),
        preferred_batch_sizes=tuple(preferred_batch_sizes),
        parameters=dict(parameter),
        cuda=dict(cuda),
        tensorrt=dict(tensorrt),
        **numbers,
    )


def _given(**options: object) -> dict[str, Any]:
    """Return the options that were given, with plain values; without any, a repeatable option is empty."""
    return {
        key: value.value if isinstance(value, Enum) else value
        for key, value in options.items()
        if value is not None and value != []
    }


def _export_checkpoint(sources: list[str], repository: Path, options: dict[str, Any]) -> "Report":
    from coserve_export import download_published, export_published, is_link

    source = sources[0]
    if is_link(source):
        with progress_bars() as steps:
            source = str(download_published(source, steps))
    with status_line() as progress:
        return export_published(source, repository, progress=progress, **options)


def _export_run(sources: list[str], repository: Path, options: dict[str, Any]) -> "Report":
    from coserve_export import export_run
    from coserve_training.errors import TrainingError

    with one_line(TrainingError), status_line() as progress:
        return export_run(sources[0], repository, progress=progress, **options)


def _export_files(sources: list[str], repository: Path, options: dict[str, Any]) -> "Report":
    from coserve_export import DescriptionError, export_onnx

    needed = ("name", "labels", "mean", "std")
    missing = ", ".join(f"--{option}" for option in needed if options.get(option) is None)
    if missing:
        raise DescriptionError(f"{sources[0]} counts as an ONNX file, and ONNX files also need {missing}")
    with status_line() as progress:
        return export_onnx(sources, repository, progress=progress, **options)


def _print(report: "Report", as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
        return
    rows = [(member.name, f"{member.bytes / 1e6:.1f} MB", member.parity) for member in report.members]
    rows.append((report.name, f"{report.classes} classes", report.parity))
    width = max(len(name) for name, _, _ in rows)
    # ONNX files that keep their precision are compared with nothing.
    if report.parity is not None:
        typer.echo(f"{'':{width}}  {'':>12}  {'difference':>10}  {'same top-1':>10}  {'images':>6}")
    for name, size, parity in rows:
        line = f"{name:<{width}}  {size:>12}"
        if parity is not None:
            line += f"  {parity.max_abs_difference:>10.1e}  {parity.top1_agreement:>10.2%}"
            line += f"  {parity.images:>6}"
        typer.echo(line)
    for member in report.members:
        for note in member.notes:
            typer.echo(f"{member.name} {note}")
    for note in report.notes:
        typer.echo(note)
    if (loss := report.accuracy_loss) is not None:
        typer.echo(
            f"top-1 accuracy {loss.int8:.2%} of {loss.images} images, fp32 {loss.fp32:.2%}: "
            f"{loss.points:+.2f} points lost"
        )
    typer.echo(f"version {report.version} written to {report.repository}")
