"""Accuracy of a trained ensemble and of each member on labelled images."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from coserve_images.preprocess import normalise
from coserve_training.data import Batches, Pixels, Progress, Split, index_batches, space_evenly
from coserve_training.device import choose_device
from coserve_training.errors import DataError, RunError
from coserve_training.runs.folder import Checkpoint, Description, Run, load_run, write_atomically
from coserve_training.runs.images import ImageRecord

BATCH = 256
CALIBRATION_BINS = 15
BELOW_ONE = 1 - 2**-24
"""The largest float32 below 1. The library would give confidences of 1 a bin of their own."""
STATISTICS_IMAGES = 50_000


@dataclass(frozen=True)
class Scores:
    """Scores on labelled images.

    Attributes:
        top1: top-1 accuracy, as a fraction.
        top5: top-5 accuracy, likewise.
        nll: mean negative log-likelihood, in nats.
        ece: expected calibration error, as a fraction.
    """

    top1: float
    top5: float
    nll: float
    ece: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of an ensemble and its members, and how often members disagree.

    Attributes:
        images: number of images.
        ensemble: scores of the averaged logits.
        members: scores of each member.
        disagreement: fraction of images on which at least two members predict different classes.
        pairwise_disagreement: fraction on which two members do, averaged over all pairs; 0 for one member.
        split: which images these are: "test", "val" if there is no other split, or "held-out" of the training
            images; None if that is not known.
    """

    images: int
    ensemble: Scores
    members: list[Scores]
    disagreement: float
    pairwise_disagreement: float
    split: str | None = None


@dataclass(frozen=True)
class Outputs:
    """Members' outputs on the images of a split.

    Attributes:
        logits: `[S, N, C]` float32, in main memory.
        targets: classes `[N]`.
        split: name of the split, as in `Evaluation`.
        images: the images, with classes as the data number them; None if only the outputs are known.
    """

    logits: Tensor
    targets: Tensor
    split: str | None = None
    images: Split | None = None

    def score(self) -> Evaluation:
        """Score the members and the mean of their logits."""
        return score_members(self.logits, self.targets, self.split)

    def sample(self, limit: int | None) -> "Outputs":
        """Return the outputs on at most `limit` images, evenly spaced."""
        chosen = space_evenly(len(self.targets), limit)
        images = None if self.images is None else self.images.select(chosen)
        return Outputs(self.logits[:, chosen], self.targets[chosen], self.split, images)


def score(logits: Tensor, targets: Tensor) -> Scores:
    """Score logits `[N, C]` on classes `[N]`. With fewer than 5 classes, top-5 counts all of them.

    The calibration error is the l1 norm over 15 equal bins of confidence (arXiv 1706.04599).
    """
    classes = logits.shape[1]
    top1, top5 = (
        multiclass_accuracy(logits, targets, classes, average="micro", top_k=min(k, classes)) for k in (1, 5)
    )
    nll = F.cross_entropy(logits, targets)
    confidences = logits.softmax(-1).clamp(max=BELOW_ONE)
    ece = multiclass_calibration_error(confidences, targets, classes, n_bins=CALIBRATION_BINS)
    return Scores(*(round(float(value), 6) for value in (top1, top5, nll, ece)))


def score_members(logits: Tensor, targets: Tensor, split: str | None = None) -> Evaluation:
    """Score members' logits `[S, N, C]` and their mean on classes `[N]` of a split."""
    votes = logits.argmax(-1)
    pairs = [float((a != b).float().mean()) for a, b in combinations(votes, 2)]
    return Evaluation(
        images=len(targets),
        ensemble=score(logits.mean(0), targets),
        members=[score(member, targets) for member in logits],
        disagreement=round(float((votes != votes[0]).any(0).float().mean()), 6),
        pairwise_disagreement=round(sum(pairs) / max(1, len(pairs)), 6),
        split=split,
    )


@torch.inference_mode()
def member_logits(
    members: Sequence[nn.Module],
    split: Split,
    mean: Sequence[float],
    std: Sequence[float],
    progress: Progress | None = None,
    device: torch.device | None = None,
    change: Callable[[Pixels], Pixels] | None = None,
) -> Tensor:
    """Run every member on a split, and return logits `[S, N, C]` float32, in main memory.

    Args:
        members: networks in evaluation mode, which map normalised `[N, 3, H, W]` to logits `[N, C]`. They are
            moved to the device, and stay there.
        split: images and classes.
        mean: mean of each channel, of pixels in [0, 1].
        std: standard deviation of each channel, likewise.
        progress: called after every batch.
        device: the device to run on; the GPU if there is one, by default.
        change: takes and returns a batch `[N, H, W, 3]` uint8 before it is normalised.

    Raises:
        RunError: if a member's logits are not finite.
    """
    device = choose_device() if device is None else device
    for member in members:
        member.to(device)
    batches = []
    for pixels, _ in Batches(split, index_batches(len(split), BATCH)):
        array = pixels.numpy() if change is None else change(pixels.numpy())
        images = torch.from_numpy(normalise(array, mean, std)).to(device)
        # By default, convolutions on a GPU round float32 to TF32.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
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
    device: torch.device | None = None,
) -> Evaluation:
    """Score the members and the mean of their logits on a split; `member_logits` describes the arguments."""
    logits = member_logits(members, split, mean, std, progress, device)
    return score_members(logits, torch.from_numpy(split.targets))


def held_out_logits(
    folder: Path,
    data: Sequence[Path | str] | Path | str | None = None,
    checkpoint: Checkpoint = "last",
    progress: Progress | None = None,
    report: Callable[[str], None] = print,
    *,
    calibrating: bool = False,
) -> tuple[Run, Outputs, Outputs | None]:
    """Load a run, and run its members on the test split of a data set.

    Without a test split, its validation split is used; without either, the images that training held out,
    which are recognised by content.

    Args:
        folder: the run folder.
        data: one or several paths of a data set; by default the run's own data.
        checkpoint: "last", or "best" for the best epoch (docs/guides/training/data.md, Splits).
        progress: called with the progress of decoding and evaluating.
        report: called with a line for each thing to note about the data.
        calibrating: run the members on the validation split, too, if there is one beside the test split.

    Returns:
        The run, and its members' outputs on the test split and the validation split.

    Raises:
        RunError: if the folder is not a run folder, or a member's logits are not finite.
        DataError: if the images cannot be read, were trained on, have no test split, or have other classes
            than the run.
    """
    description = Description.read(folder)
    run = load_run(folder, checkpoint)
    given = [data] if isinstance(data, Path | str) else data
    config = description.config
    paths = [Path(path) for path in (config.data if given is None else given)]
    dataset, test = ImageRecord.read(folder).load_test(
        paths,
        config.image_size,
        progress,
        with_val=calibrating,
        resize_size=config.resize_size,
        interpolation=config.interpolation,
        best=checkpoint == "best",
    )
    for note in dataset.notes:
        report(note)
    if set(dataset.labels) != set(run.labels):
        extra = set(dataset.labels) - set(run.labels)
        missing = set(run.labels) - set(dataset.labels)
        raise DataError(f"classes differ from the run's: missing {sorted(missing)}, unknown {sorted(extra)}")
    classes = np.array([run.labels.index(label) for label in dataset.labels])

    def run_on(split: Split, name: str) -> Outputs:
        logits = member_logits(run.members, split, description.mean, description.std, progress)
        report_replaced(split, report)
        return Outputs(logits, torch.from_numpy(classes[split.targets]), name, split)

    return run, run_on(test, dataset.test_name), None if dataset.val is None else run_on(dataset.val, "val")


def report_replaced(split: Split, report: Callable[[str], None]) -> None:
    """Report the images that became unreadable, in place of which others were taken."""
    for name in split.replaced:
        report(f"an image became unreadable, and another one was taken twice: {name}")


def evaluate_run(
    folder: Path | str,
    data: Sequence[Path | str] | Path | str | None = None,
    checkpoint: Checkpoint = "last",
    progress: Progress | None = None,
    report: Callable[[str], None] = print,
) -> Evaluation:
    """Score a run's ensemble and members on the test split of a data set.

    Args:
        folder: the run folder.
        data: one or several paths of a data set; by default the run's own data.
        checkpoint: "last", or "best" for the best epoch (docs/guides/training/data.md, Splits).
        progress: called with the progress of decoding and evaluating.
        report: called with a line for each thing to note about the data.

    Raises:
        RunError: if the folder is not a run folder, or a member's logits are not finite.
        DataError: if the images cannot be read, were trained on, have no test split, or have other classes
            than the run.
    """
    _, test, _ = held_out_logits(Path(folder), data, checkpoint, progress, report)
    return test.score()


def write_evaluation(folder: Path, evaluation: Evaluation, checkpoint: Checkpoint, epochs: int) -> None:
    """Record an evaluation in its run folder, for export."""
    content = {"checkpoint": checkpoint, "epochs": epochs, **asdict(evaluation)}
    write_atomically(folder / "evaluation.json", (json.dumps(content, indent=2) + "\n").encode())


def channel_statistics(split: Split) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of each channel, of pixels in [0, 1], rounded to four digits.

    A larger split is sampled evenly, at `STATISTICS_IMAGES` images.
    """
    sample = split.select(space_evenly(len(split), STATISTICS_IMAGES))
    sums = np.zeros(3)
    squares = np.zeros(3)
    count = 0
    for images, _ in Batches(sample, index_batches(len(sample), BATCH)):
        pixels = images.numpy().reshape(-1, 3) / 255.0
        sums += pixels.sum(0)
        squares += (pixels**2).sum(0)
        count += len(pixels)
    mean = sums / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-8))
    return [round(float(v), 4) for v in mean], [round(float(v), 4) for v in std]
