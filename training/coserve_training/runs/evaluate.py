"""How good a trained ensemble and each of its members are on labelled images."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from coserve_training.data import Batches, Progress, Split, in_order, load_dataset, to_pixels
from coserve_training.errors import DataError, RunError
from coserve_training.runs.folder import Checkpoint, Description, Run, load_run, write_atomically

BATCH = 256
CALIBRATION_BINS = 15
STATISTICS_IMAGES = 50_000


@dataclass(frozen=True)
class Scores:
    """Top-1 and top-5 accuracy as fractions, negative log-likelihood in nats, expected calibration error."""

    top1: float
    top5: float
    nll: float
    ece: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of the averaged logits and of each member, and how often members differ."""

    images: int
    ensemble: Scores
    members: list[Scores]
    disagreement: float
    """Fraction of images that any two members put into different classes."""
    pairwise_disagreement: float
    """The same of two members, averaged over all pairs; 0 for a single member."""


def score(logits: Tensor, targets: Tensor) -> Scores:
    """Scores of logits `[N, C]` on classes `[N]`; top-5 counts fewer where there are fewer classes.

    The calibration error is the l1 norm over 15 equal bins of confidence (arXiv 1706.04599).
    """
    classes = logits.shape[1]
    top1, top5 = (
        multiclass_accuracy(logits, targets, classes, average="micro", top_k=min(k, classes)) for k in (1, 5)
    )
    nll = F.cross_entropy(logits, targets)
    ece = multiclass_calibration_error(logits.softmax(-1), targets, classes, n_bins=CALIBRATION_BINS)
    return Scores(*(round(float(value), 6) for value in (top1, top5, nll, ece)))


def score_members(logits: Tensor, targets: Tensor) -> Evaluation:
    """Score members' logits `[S, N, C]`, and their mean, on classes `[N]`."""
    votes = logits.argmax(-1)
    pairs = [float((a != b).float().mean()) for a, b in combinations(votes, 2)]
    return Evaluation(
        images=len(targets),
        ensemble=score(logits.mean(0), targets),
        members=[score(member, targets) for member in logits],
        disagreement=round(float((votes != votes[0]).any(0).float().mean()), 6),
        pairwise_disagreement=round(sum(pairs) / max(1, len(pairs)), 6),
    )


@torch.inference_mode()
def member_logits(
    members: Sequence[nn.Module],
    split: Split,
    mean: Sequence[float],
    std: Sequence[float],
    progress: Progress | None = None,
) -> Tensor:
    """Run every member over a split: logits `[S, N, C]` float32, in main memory.

    Args:
        members: in evaluation mode, normalised `[N, 3, H, W]` to logits `[N, C]`.
        split: images and classes.
        mean: per channel, of pixels in [0, 1].
        std: per channel, likewise.
        progress: told how far it is.

    Raises:
        RunError: when a member's logits are not finite.
    """
    device = next(members[0].parameters()).device
    shift, scale = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (mean, std))
    batches = []
    for pixels, _ in Batches(split, in_order(len(split), BATCH)):
        images = (to_pixels(pixels.to(device)) - shift) / scale
        batches.append(torch.stack([member(images).float() for member in members]).cpu())
        if progress is not None:
            progress("evaluating", min(BATCH * len(batches), len(split)), len(split))
    logits = torch.cat(batches, dim=1)
    for index, finite in enumerate(logits.isfinite().flatten(1).all(1).tolist()):
        if not finite:
            raise RunError(f"member {index} gives logits that are not finite")
    return logits


def evaluate(
    members: Sequence[nn.Module],
    split: Split,
    mean: Sequence[float],
    std: Sequence[float],
    progress: Progress | None = None,
) -> Evaluation:
    """Run every member over a split, as `member_logits`, and score them and the mean of their logits."""
    logits = member_logits(members, split, mean, std, progress)
    return score_members(logits, torch.from_numpy(split.targets))


def held_out_logits(
    folder: Path,
    data: Sequence[Path],
    checkpoint: Checkpoint = "last",
    progress: Progress | None = None,
) -> tuple[Run, Tensor, Tensor]:
    """A run, its members' logits `[S, N, C]` on the test split of a data set, and the classes `[N]`.

    Where the run's own data have none, the images that training held out are the split.

    Raises:
        RunError: when the folder is not a run, or its members give no finite logits.
        DataError: when the images cannot be read, have no test split, or other classes than the run.
    """
    description, run = Description.read(folder), load_run(folder, checkpoint)
    config = description.config
    dataset = load_dataset(
        data, config.image_size, progress, skip_corrupt=config.skip_corrupt, test_only=True
    )
    test = dataset.test
    own = [path.resolve() for path in data] == [Path(path).resolve() for path in config.data]
    if test is None and dataset.train is not None and own:
        _, test = dataset.train.hold_out()
    if test is None:
        raise DataError(
            f"{', '.join(map(str, data))}: no test split (test/<class>/<image> or val/) to evaluate on"
        )
    if dataset.labels != run.labels:
        extra, missing = set(dataset.labels) - set(run.labels), set(run.labels) - set(dataset.labels)
        raise DataError(f"classes differ from the run's: missing {sorted(missing)}, unknown {sorted(extra)}")
    logits = member_logits(run.members, test, description.mean, description.std, progress)
    return run, logits, torch.from_numpy(test.targets)


def evaluate_run(
    folder: Path,
    data: Sequence[Path],
    checkpoint: Checkpoint = "last",
    progress: Progress | None = None,
) -> Evaluation:
    """Evaluate a run on the test split of a data set.

    Raises:
        RunError, DataError: as `held_out_logits`.
    """
    _, logits, targets = held_out_logits(folder, data, checkpoint, progress)
    return score_members(logits, targets)


def write_evaluation(folder: Path, evaluation: Evaluation, checkpoint: Checkpoint, epochs: int) -> None:
    """Record an evaluation in its run folder, where export finds it."""
    content = {"checkpoint": checkpoint, "epochs": epochs, **asdict(evaluation)}
    write_atomically(folder / "evaluation.json", (json.dumps(content, indent=2) + "\n").encode())


def channel_statistics(split: Split) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of pixels in [0, 1], rounded to four digits.

    Of more than `STATISTICS_IMAGES`, so many are taken, evenly spread.
    """
    chosen = np.linspace(0, len(split) - 1, min(len(split), STATISTICS_IMAGES)).round().astype(int)
    sample = split.centred().select(chosen)
    sums, squares, count = np.zeros(3), np.zeros(3), 0
    for images, _ in Batches(sample, in_order(len(sample), BATCH)):
        pixels = images.numpy().reshape(-1, 3) / 255.0
        sums, squares, count = sums + pixels.sum(0), squares + (pixels**2).sum(0), count + len(pixels)
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-8))
    return [round(float(v), 4) for v in mean], [round(float(v), 4) for v in std]
