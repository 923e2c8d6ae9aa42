"""Hold `train` against a plain loop with the same network, weights, data, order of images and settings.

    python benchmarks/compare_plain_loop.py --data cifar10 --network wide_resnet10_4 --split 2 --seeds 3

Without views, both have the same losses but for rounding. With crops and flips, which each draws from random
numbers of its own, they differ by chance alone.
"""

import argparse
import csv
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from coserve_training import TrainConfig, load_run, train
from coserve_training.data import load_dataset
from coserve_training.data.order import BatchOrder

sys.path.append(str(Path(__file__).parent))
from plain_loop import plain_loop


def compare(
    config: TrainConfig, folder: Path, seed: int, views: bool, workers: int | None = None
) -> tuple[list[float], list[float]]:
    """Train twice from the same weights, and return each epoch's training loss: ours and the plain loop's.

    Args:
        config: the recipe. The plain loop knows SGD with a cosine, mean losses and the Jensen-Shannon term.
        folder: where to write the runs.
        seed: seed of the weights, the order of the images and the views.
        views: crop and flip.
        workers: processes that decode images, as in `train`.
    """
    ours = replace(config, seed=seed, crop="padded" if views else "none", flip=views, precision="fp32")
    # A run that learns nothing writes the first weights.
    train(replace(ours, epochs=1, learning_rate=0), folder / "first", workers=workers, report=_discard)
    members = load_run(folder / "first").members
    train(replace(ours, initial=str(folder / "first")), folder / "ours", workers=workers, report=_discard)
    with (folder / "ours" / "metrics.csv").open() as file:
        measured = [float(row["train_loss"]) for row in csv.DictReader(file)]
    split = load_dataset([Path(path) for path in config.data], config.image_size).train
    if split is None:
        raise SystemExit("the data have no training images")
    images, classes = split[:]
    order = BatchOrder(len(split), config.batch_size, seed, 1)
    epochs = []
    for epoch in range(config.epochs):
        order.set_epoch(epoch)
        epochs.append(list(order))
    how = {
        "rate": config.learning_rate,
        "warmup": config.resolved_warmup_epochs,
        "decay": config.member_weight_decay,
        "weight": config.co_training_weight,
        "ramp": config.resolved_co_training_warmup_epochs,
        "views": views,
    }
    torch.manual_seed(seed)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    losses = plain_loop(members, pixels, torch.from_numpy(classes), epochs, how)
    return measured, [sum(epoch) / len(epoch) for epoch in losses]


def _discard(line: str) -> None:
    """Discard the line of an epoch."""


def main() -> None:
    """Compare seed by seed, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", required=True)
    parser.add_argument("--network", default="wide_resnet10_4")
    parser.add_argument("--split", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--image-size", type=int, default=32)
    arguments = parser.parse_args()
    config = TrainConfig(
        data=tuple(arguments.data),
        network=arguments.network,
        split=arguments.split,
        epochs=arguments.epochs,
        image_size=arguments.image_size,
    )
    print("seed  views  training loss by epoch: ours, the plain loop's")
    for views in (False, True):
        for seed in range(arguments.seeds):
            with tempfile.TemporaryDirectory() as folder:
                pair = compare(config, Path(folder), seed, views)
            ours, plain = ("  ".join(f"{loss:.4f}" for loss in losses) for losses in pair)
            print(f"{seed:4}  {'on' if views else 'off':>5}  {ours} | {plain}", flush=True)


if __name__ == "__main__":
    main()
