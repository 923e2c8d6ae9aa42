"""`coserve bench speedup`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from coserve_cli.divide import DatasetName

ENGINES = ("onnxruntime", "openvino")
PRECISIONS = ("fp32", "fp16", "tf32", "bf16", "int8")


def speedup(
    network: Annotated[
        str | None,
        typer.Option(
            help="The network to measure: one of --repository, or else any network, with random weights."
        ),
    ] = None,
    repository: Annotated[
        Path | None,
        typer.Option(help="Model repository with ensembles of the network, undivided and divided."),
    ] = None,
    splits: Annotated[
        str, typer.Option(metavar="S,…", help="Numbers of members; 1 is always measured.")
    ] = "1,2,4",
    batch_sizes: Annotated[str, typer.Option(metavar="N,…", help="Images per batch.")] = "1",
    precisions: Annotated[
        str,
        typer.Option(
            metavar="P,…",
            help="fp32, fp16, tf32, bf16, int8; the output names those that are not available. GPUs compute "
            "the fp32 networks in tf32, and openvino in bf16.",
        ),
    ] = "fp32",
    engines: Annotated[
        str,
        typer.Option(
            metavar="E,…", help="onnxruntime, openvino; the output names those that are not available."
        ),
    ] = "onnxruntime",
    dataset: Annotated[
        DatasetName | None,
        typer.Option(
            help="Sets classes and image size of networks with random weights.", show_default="cifar10"
        ),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="I,…",
            help="GPUs to run on instead of cores, by number: streams of one GPU, or several GPUs. Uses ONNX "
            "Runtime's CUDA provider. Not yet tested on a GPU.",
        ),
    ] = None,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="Also measure the networks on --gpus with CUDA graphs.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each way at each batch size.")] = 100,
    seconds: Annotated[
        float, typer.Option(min=0, help="Seconds per batch size, after which --repeats end early.")
    ] = 120,
    plots: Annotated[Path | None, typer.Option(help="Folder to write plots to.")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON file to write the results to.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare a network with the members it is divided into: in turn, concurrent, and fused into one graph.

    All are measured in turns, in one run on the same devices. Ctrl-C prints the results so far. Needs the
    extra export; --plots also needs the extra plots.
    """
    if network is None and repository is None:
        raise typer.BadParameter("give --network, --repository, or both")
    if repository is not None and dataset is not None:
        raise typer.BadParameter("--dataset is for random weights; networks of --repository have their own")
    members = _numbers(splits, "--splits", 1)
    sizes = _numbers(batch_sizes, "--batch-sizes", 1)
    gpu_numbers = () if gpus is None else _numbers(gpus, "--gpus", 0)
    if cuda_graphs and not gpu_numbers:
        raise typer.BadParameter("--cuda-graphs needs --gpus")
    if plots is not None and find_spec("matplotlib") is None:
        raise typer.BadParameter("--plots needs matplotlib: pip install 'coserve[plots]'")

    from coserve_bench.errors import BenchError
    from coserve_bench.output import OutputError, check_writable
    from coserve_bench.speedup.compare import Request, compare
    from coserve_bench.speedup.measure import Limits
    from coserve_bench.speedup.table import table
    from coserve_bench.stopping import noting_signals
    from coserve_cli.errors import one_line
    from coserve_cli.output import print_results
    from coserve_cli.progress import progress_bars
    from coserve_export.errors import ExportError
    from coserve_server.errors import StartupError
    from coserve_training.errors import TrainingError

    request = Request(
        network=network,
        repository=repository,
        splits=members,
        batch_sizes=sizes,
        precisions=_names(precisions, "--precisions", PRECISIONS),
        engines=_names(engines, "--engines", ENGINES),
        dataset=(dataset or DatasetName.CIFAR10).value,
        gpus=gpu_numbers,
        cuda_graphs=cuda_graphs,
        limits=Limits(repeats, seconds),
    )
    with (
        noting_signals(),
        one_line(BenchError, OutputError, StartupError, TrainingError, ExportError, OSError, MemoryError),
    ):
        if output is not None:
            check_writable(output)
        if plots is not None:
            # The folder itself is made only when there is something to draw.
            check_writable(next(one for one in (plots, *plots.parents) if one.exists()) / "latency.png")
        with progress_bars() as progress:
            report = compare(request, progress)
        print_results(report.to_json(), table(report), output, as_json)
        if plots is not None:
            from coserve_bench.speedup.plots import draw

            plots.mkdir(parents=True, exist_ok=True)
            for file in draw(report, plots):
                typer.echo(f"wrote {file}", err=True)
    if not report.complete:
        raise typer.Exit(130)


def _names(text: str, option: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Parse distinct names."""
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{option} {name!r}: choose from {', '.join(known)}")
    return names


def _numbers(text: str, option: str, least: int) -> tuple[int, ...]:
    """Parse distinct numbers, and return them in ascending order."""
    try:
        numbers = sorted({int(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < least:
        raise typer.BadParameter(f"{option} {text!r}: give numbers of {least} or more, such as 1,2,4")
    return tuple(numbers)
