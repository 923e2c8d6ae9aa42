"""Exports a network family with random weights, which costs as much to run as a trained one."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from coserve_bench.random_networks import SAMPLES, randomise
from coserve_export.parity import Precision
from coserve_export.trained import export_networks
from coserve_training.counting import DATASETS
from coserve_training.networks import member_network
from coserve_training.runs.folder import Run


def export_family(
    repository: Path,
    network: str,
    splits: Sequence[int],
    precisions: Sequence[Precision],
    dataset: str,
    max_batch_size: int,
    progress: Callable[[str, int, int], None] | None,
) -> None:
    """Write an ensemble for every split and precision to a model repository.

    Args:
        dataset: sets classes and image size, as in `coserve divide`.

    Raises:
        coserve_training.errors.TrainingError: the network is unknown, or no rule covers a split.
        coserve_export.errors.ExportError: an ensemble cannot be exported.
    """
    classes, size = DATASETS[dataset]
    configs = {split: member_network(network, split, image_size=size) for split in splits}
    done = 0
    generator = np.random.default_rng(0)
    preprocessing = {
        "height": size,
        "width": size,
        "resize_size": size,
        "interpolation": "bilinear",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    }
    for split, config in configs.items():
        members = []
        for index in range(split):
            torch.manual_seed(index)
            members.append(randomise(config.build(classes), size))
        run = Run(
            members=members,
            labels=[str(label) for label in range(classes)],
            preprocessing=preprocessing,
            provenance={"network": network, "split": split, "member_networks": [str(config)] * split},
            samples=generator.integers(0, 256, (SAMPLES, size, size, 3), np.uint8),
        )
        for precision in precisions:
            name = f"{network}_s{split}_{precision}"
            export_networks(run, repository, name=name, precision=precision, max_batch_size=max_batch_size)
            done += 1
            if progress is not None:
                progress("exporting", done, len(splits) * len(precisions))
