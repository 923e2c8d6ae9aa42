"""Twenty steps with every part of a recipe, whose losses are stored in golden_run.json.

python -m tests.training.assembly.golden_run    writes the file anew, after an intended change
"""

import csv
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from coserve_training.config import TrainConfig
from coserve_training.training_run import train

FILE = Path(__file__).with_name("golden_run.json")
SIDE = 16
STEPS_PER_EPOCH = 4
EPOCHS = 5
BATCH = 12


def golden_losses(folder: Path) -> dict[str, list[float]]:
    """Return the loss of each training step, and the loss of the mean of all members after each epoch."""
    write_images(folder / "images")
    config = TrainConfig(
        data=(str(folder / "images"),),
        network="wide_resnet10_1",
        split=2,
        seed=7,
        epochs=EPOCHS,
        batch_size=BATCH,
        image_size=SIDE,
        start_size=12,
        policy="autoaugment-cifar10",
        erasing=0.5,
        cutout=4,
        mixup=0.2,
        learning_rate=0.03,
        warmup_epochs=1.0,
        weight_decay=0.05,
        divide_weight_decay=True,
        label_smoothing=0.1,
        co_training_weight=3.0,
        co_training_warmup_epochs=3.0,
        ema=0.5,
        precision="fp32",
    )
    losses = []
    backward = torch.Tensor.backward

    def note_and_go_backward(loss: torch.Tensor, *arguments: Any, **options: Any) -> None:
        losses.append(round(loss.item(), 6))
        backward(loss, *arguments, **options)  # type: ignore[no-untyped-call]

    with (
        patch.object(torch.Tensor, "backward", note_and_go_backward),
        patch.object(torch.cuda, "is_available", return_value=False),  # GPUs draw other random numbers
    ):
        train(config, folder / "run", workers=0, report=lambda _: None)
    with (folder / "run" / "metrics.csv").open() as file:
        tested = [float(row["test_loss"]) for row in csv.DictReader(file)]
    return {"training": losses, "test": tested}


def write_images(folder: Path) -> None:
    """Write images of waves: three classes differ in direction, and images in colour, place and length."""
    row, column = np.mgrid[:SIDE, :SIDE]
    for split, count in (("train", STEPS_PER_EPOCH * BATCH + 2), ("test", 15)):
        for index in range(count):
            label = index % 3
            along = (row, column, row + column)[label]
            # Not drawn at random: NumPy's generators may give other numbers in later versions.
            waves = np.sin(along[..., None] / (1 + index % 5 / 4) + index + np.arange(3) * (index % 7))
            pixels = 127 + 20 * (index % 4) * waves + 10 * (row[..., None] % 3)
            file = folder / split / "abc"[label] / f"{index:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        FILE.write_text(json.dumps(golden_losses(Path(folder)), indent=2) + "\n")
