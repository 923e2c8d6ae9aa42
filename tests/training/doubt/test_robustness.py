"""Scores on corrupted copies, of members that answer by an image's brightness."""

from itertools import chain

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coserve_training.data import Split
from coserve_training.doubt.corruptions import CORRUPTIONS, corrupt
from coserve_training.doubt.robustness import Robustness, average, score_corrupted
from coserve_training.errors import ConfigError, DataError
from coserve_training.runs.evaluate import Outputs, member_logits, score
from coserve_training.runs.folder import Run

MEAN = [0.5] * 3
STD = [0.25] * 3


class Brightness(nn.Module):
    """Says class 1 if an image is brighter than a threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, images: Tensor) -> Tensor:
        margin = 20 * (images.mean((1, 2, 3)) - self.threshold)
        return torch.stack([-margin, margin], 1)


@pytest.fixture
def run() -> Run:
    samples = np.zeros((1, 16, 16, 3), np.uint8)
    return Run([Brightness(0), Brightness(0.5)], ["dark", "light"], {}, {}, samples)


@pytest.fixture
def test(run: Run) -> Outputs:
    random = np.random.default_rng(0)
    pixels = random.integers(60, 190, (12, 1, 1, 3)) + random.integers(-40, 40, (12, 16, 16, 3))
    images = Split(pixels.astype(np.uint8), (pixels.mean((1, 2, 3)) > 128).astype(np.int64))
    logits = member_logits(run.members, images, MEAN, STD)
    return Outputs(logits, torch.from_numpy(images.targets), "test", images)


def scored(run: Run, test: Outputs, limit: int | None = None, steps: list[int] | None = None) -> Robustness:
    def progress(_: str, done: int, total: int) -> None:
        assert total == 75 * (limit or 12)
        assert steps is not None
        steps.append(done)

    return score_corrupted(run, test, MEAN, STD, limit, progress=None if steps is None else progress)


def test_each_copy_is_scored_and_averaged(run: Run, test: Outputs) -> None:
    steps = list[int]()
    robustness = scored(run, test, steps=steps)
    assert [one.corruption for one in robustness.corruptions] == list(CORRUPTIONS)
    assert steps == [12 * step for step in range(1, 76)]
    bright = next(one for one in robustness.corruptions if one.corruption == "brightness")
    assert test.images is not None
    copies = Split(corrupt(np.asarray(test.images.images), "brightness", 4), test.images.targets)
    logits = member_logits(run.members, copies, MEAN, STD)
    assert bright.severities[3].ensemble == score(logits.mean(0), test.targets)
    first, second = (score(member, test.targets) for member in logits)
    assert bright.severities[3].member.nll == pytest.approx((first.nll + second.nll) / 2, abs=1e-6)
    differ = (logits[0].argmax(-1) != logits[1].argmax(-1)).float().mean()
    assert bright.severities[3].disagreement == pytest.approx(float(differ), abs=1e-6)
    top1 = [one.ensemble.top1 for one in bright.severities]
    assert bright.mean.ensemble.top1 == pytest.approx(sum(top1) / 5, abs=1e-6)
    assert top1[4] < robustness.clean.ensemble.top1
    every = list(chain.from_iterable(one.severities for one in robustness.corruptions))
    assert robustness.mean.disagreement == pytest.approx(average(every).disagreement, abs=2e-6)


def test_a_limit_takes_evenly_spaced_images(run: Run, test: Outputs) -> None:
    robustness = scored(run, test, limit=4)
    assert robustness.images == 4
    chosen = [0, 4, 7, 11]
    assert robustness.clean.ensemble == score(test.logits[:, chosen].mean(0), test.targets[chosen])
    with pytest.raises(ConfigError, match="limit must be at least 1, not 0"):
        scored(run, test, limit=0)


def test_outputs_without_images_are_refused(run: Run, test: Outputs) -> None:
    with pytest.raises(DataError, match="need the test images"):
        scored(run, Outputs(test.logits, test.targets))
