"""A run folder with untrained members and widely spread logits, for tests that only read a run."""

from pathlib import Path

import numpy as np
import torch

from coserve_training.config import TrainConfig
from coserve_training.data import Known
from coserve_training.runs.folder import Description
from coserve_training.runs.images import write_known

LABELS = ["blue", "green", "red"]
"""The classes of `image_folder`."""


def write_run(folder: Path, data: Path, split: int = 2, **options: object) -> Path:
    """Write a run of `split` members with the checkpoints `last`, after 4 epochs, and `best`, after 2."""
    folder.mkdir(parents=True)
    values = {"data": (str(data),), "network": "wide_resnet10_1", "split": split, "epochs": 4}
    config = TrainConfig.from_json(values | options)
    Description(config, LABELS, [0.4, 0.5, 0.4], [0.3, 0.3, 0.3], "images").write(folder)
    samples = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    np.savez(folder / "samples.npz", images=samples)
    write_known(folder, Known())
    write_checkpoint(folder, "last", epochs=4, seed=0)
    write_checkpoint(folder, "best", epochs=2, seed=1)
    return folder


def write_checkpoint(folder: Path, name: str, epochs: int, seed: int) -> None:
    """Write members with random weights, and classifiers with weights three times as large."""
    torch.manual_seed(seed)
    config = Description.read(folder).config
    weights = {}
    for index in range(config.split):
        for key, value in config.member_network().build(len(LABELS)).state_dict().items():
            classifier = value.shape[:1] == (len(LABELS),)
            weights[f"members.{index}.{key}"] = value * 3 if classifier else value
    torch.save({"epoch": epochs - 1, "state_dict": weights}, folder / f"{name}.ckpt")
