"""`coserve train`: co-train the members of a divided network."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    output: Annotated[Path, typer.Option(help="The run folder: configuration, metrics, checkpoints.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Images: a folder or zip with train/<class>/* and test/<class>/* (or val/), or the official "
            "CIFAR-10/100 python files. Repeat it to put several together.",
        ),
    ] = None,
    network: Annotated[str | None, typer.Option(help="The network to divide, e.g. wide_resnet28_10.")] = None,
    split: Annotated[int | None, typer.Option(help="Number of members, S. [default: 1]")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images. [default: 300]")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last finished epoch of --output.")
    ] = False,
    image_size: Annotated[int | None, typer.Option(help="Height and width in pixels. [default: 32]")] = None,
    start_size: Annotated[
        int | None,
        typer.Option(help="Resolution of the first epoch, growing to the full one. [default: full]"),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step. [default: 128]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="After warm-up. [default: 0.1]")] = None,
    final_learning_rate: Annotated[
        float | None, typer.Option(help="At the cosine's end. [default: 0.0001]")
    ] = None,
    momentum: Annotated[float | None, typer.Option(help="Nesterov momentum. [default: 0.9]")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="[default: 0.0005]")] = None,
    warmup_epochs: Annotated[
        float | None, typer.Option(help="Of the learning rate. [default: epochs × 20/300]")
    ] = None,
    co_training_weight: Annotated[
        float | None, typer.Option(help="Of the Jensen-Shannon term. [default: 0.5]")
    ] = None,
    co_training_warmup_epochs: Annotated[
        float | None, typer.Option(help="Of that weight. [default: epochs × 40/300]")
    ] = None,
    initial: Annotated[
        Path | None, typer.Option(help="A run to start from instead of random weights. [default: none]")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="auto, fp32, bf16 or fp16. [default: auto: bf16 where the hardware has it]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order and views. [default: 0]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the final scores as JSON.")] = False,
) -> None:
    """Divide a network, train its members together, and leave a run folder behind."""
    given = {k: v for k, v in locals().items() if k not in {"output", "resume", "as_json"} and v is not None}
    if not resume and not (data and network):
        raise typer.BadParameter("--data and --network are needed, unless a run is resumed with --resume")

    from dataclasses import asdict

    from coserve_cli.errors import one_line
    from coserve_cli.progress import progress_bars
    from coserve_cli.scores import print_scores
    from coserve_training.config import TrainConfig
    from coserve_training.errors import TrainingError
    from coserve_training.run import Description

    if initial:
        given["initial"] = str(initial)
    if data:
        given["data"] = tuple(str(path) for path in data)
    try:
        with one_line(TrainingError), progress_bars() as progress:
            stored = asdict(Description.read(output).config) if resume else {}
            config = TrainConfig.from_json({**stored, **given})
            # After the checks above: this import takes seconds.
            from coserve_training.train import train as train_run

            evaluation = train_run(
                config,
                output,
                resume=resume,
                report=lambda line: typer.echo(line, err=as_json),
                progress=progress,
            )
    except KeyboardInterrupt:
        typer.echo(f"interrupted; go on with: coserve train --output {output} --resume", err=True)
        raise typer.Exit(130) from None
    print_scores(evaluation, as_json)
