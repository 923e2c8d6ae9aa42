"""`train` against a plain loop, with the same network, weights, data, order of images and settings."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coserve_training import TrainConfig

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from compare_plain_loop import compare

SIDE = 16


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """Return a recipe for stripes of two directions, with and without a black edge at the top.

    Flips swap the directions and crops add black edges, so views make them hard to tell apart.
    """
    folder = tmp_path_factory.mktemp("stripes")
    random = np.random.default_rng(0)
    row, column = np.mgrid[:SIDE, :SIDE]
    for split, count in (("train", 48), ("test", 2)):
        for index in range(4 * count):
            down = index % 2
            edge = index // 2 % 2
            stripes = (column + (row if down else -row) + random.integers(6)) % 6 < 3
            pixels = random.normal(np.where(stripes, 170, 50)[..., None], 30, (SIDE, SIDE, 3))
            pixels[: 3 * edge] = 0
            file = folder / split / f"{down}{edge}" / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)
    return TrainConfig(
        data=(str(folder),),
        network="wide_resnet10_1",
        split=2,
        epochs=2,
        batch_size=16,
        image_size=SIDE,
        learning_rate=0.05,
        warmup_epochs=0.5,
        weight_decay=0.02,
        co_training_weight=2.0,
        co_training_warmup_epochs=1.0,
    )


def test_without_views_the_losses_are_the_same(config: TrainConfig, tmp_path: Path) -> None:
    # Members that see the same images hardly differ, so that only a large weight shows in the loss.
    config = replace(config, co_training_weight=10.0)
    ours, plain = compare(config, tmp_path, seed=0, views=False, workers=0)
    assert ours == pytest.approx(plain, rel=1e-4)


def test_with_views_the_losses_differ_by_chance_alone(config: TrainConfig, tmp_path: Path) -> None:
    pairs = [compare(config, tmp_path / str(seed), seed, True, workers=0) for seed in range(2)]
    ours, plain = np.mean(pairs, axis=0)
    assert ours == pytest.approx(plain, abs=0.1)
