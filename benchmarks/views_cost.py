"""Measure what views of CIFAR-sized images cost, and compare them with kornia, which drew them before.

    pip install kornia==0.9.0
    python benchmarks/views_cost.py --output benchmarks/results/views.json

The time per view is CPU time of one thread. The time per step is that of a training step of wide_resnet10_4
divided by two, with views from worker processes or, by kornia, drawn in the step itself. Both ways take turns
in every round, so that other work on the machine slows both.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

import kornia
import kornia.augmentation as K
import numpy as np
import torch
from kornia.augmentation.auto import AutoAugment, RandAugment
from torch import Tensor, nn

from coserve_server.machine.processor import read_processor
from coserve_training.config import TrainConfig
from coserve_training.data import Batches, Split, to_pixels, usable_cores
from coserve_training.data.order import BatchOrder
from coserve_training.views import MemberViews

BATCH = 128
PLAIN = TrainConfig(data=("x",), network="wide_resnet10_4", split=2, batch_size=BATCH)
RECIPES = {
    "crop and flip": PLAIN,
    "crop, flip and AutoAugment": replace(PLAIN, policy="autoaugment-cifar10"),
    "crop, flip and RandAugment": replace(PLAIN, policy="randaugment"),
}
MEAN = (0.49, 0.48, 0.45)
Views = Iterable[tuple[list[Tensor], Tensor]]
"""Batches: a view `[N, 3, 32, 32]` in [0, 1] for each member, and the classes `[N]`."""
Way = Callable[[TrainConfig, Split, int], Views]
"""Draws the views of a split, with a number of workers."""


def images(count: int) -> Split:
    """Make smooth images with some noise, in ten classes."""
    random = np.random.default_rng(0)
    coarse = torch.from_numpy(random.uniform(0, 255, (count, 3, 4, 4)))
    smooth = nn.functional.interpolate(coarse, (32, 32), mode="bicubic").permute(0, 2, 3, 1).numpy()
    noisy = smooth + random.normal(0, 8, smooth.shape)
    return Split(noisy.clip(0, 255).astype(np.uint8), np.arange(count) % 10)


def ours(config: TrainConfig, split: Split, workers: int) -> Views:
    """Draw views as training does."""
    views = MemberViews(config, range(config.split), MEAN)
    batches = Batches(split.with_views(views, workers), BatchOrder(len(split), BATCH, 0, 1))
    for drawn, targets in batches:
        yield [to_pixels(view) for view in drawn], targets
    batches.close()


def by_kornia(config: TrainConfig, split: Split, _: int) -> Views:
    """Draw views as training did until then: a sub-policy for every eight images."""
    crop = K.AugmentationSequential(K.RandomCrop((32, 32), padding=4), K.RandomHorizontalFlip())
    policy: nn.Module | None = None
    if config.policy == "randaugment":
        policy = RandAugment(config.policy_operations, config.policy_magnitude)
    elif config.policy != "none":
        policy = AutoAugment("cifar10")

    @torch.no_grad()
    def draw(pixels: Tensor) -> Tensor:
        cropped = crop(pixels)
        if policy is None:
            return cropped
        return torch.cat([policy(group) for group in torch.split(cropped, 8)]).clamp(0, 1)

    for pixels, targets in Batches(split, BatchOrder(len(split), BATCH, 0, 1)):
        yield [draw(to_pixels(pixels)) for _ in range(config.split)], targets


def cpu_time(views: Views, count: int) -> float:
    """Return the CPU time of a view, in microseconds."""
    torch.set_num_threads(1)
    start = time.process_time()
    for _ in views:
        pass
    return (time.process_time() - start) / count * 1e6


def step_time(views: Views, members: list[nn.Module]) -> float:
    """Return the wall time of a training step in seconds, without the first step."""
    torch.set_num_threads(usable_cores())
    optimizer = torch.optim.SGD([p for member in members for p in member.parameters()], 0.01)
    iterator: Iterator[tuple[list[Tensor], Tensor]] = iter(views)
    steps = 0
    start = 0.0
    for drawn, targets in iterator:
        optimizer.zero_grad()
        for member, view in zip(members, drawn, strict=True):
            nn.functional.cross_entropy(member(view), targets).backward()
        optimizer.step()
        if not steps:
            start = time.perf_counter()
        steps += 1
    return (time.perf_counter() - start) / (steps - 1)


def take_turns(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Return each way's median and the median of the ratios, after a round that does not count."""
    rows = [{name: measure() for name, measure in ways.items()} for _ in range(rounds + 1)][1:]
    ratio = median(row["coserve"] / row["kornia"] for row in rows)
    return {**{name: median(row[name] for row in rows) for name in ways}, "ratio": ratio}


def measure(config: TrainConfig, split: Split, members: list[nn.Module], rounds: int) -> dict[str, object]:
    """Measure a recipe both ways."""
    ways = {"coserve": ours, "kornia": by_kornia}
    count = len(split) * config.split

    def per_view(way: Way) -> float:
        return cpu_time(way(config, split, 0), count)

    def per_step(way: Way) -> float:
        return step_time(way(config, split, usable_cores()), members)

    return {
        "microseconds_per_view": take_turns(
            {name: partial(per_view, way) for name, way in ways.items()}, rounds
        ),
        "seconds_per_step": take_turns({name: partial(per_step, way) for name, way in ways.items()}, rounds),
    }


def main() -> None:
    """Measure every recipe, print and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=1280, help="images per turn")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    split = images(arguments.images)
    torch.manual_seed(0)
    members = [PLAIN.member_network().build(10).train() for _ in range(PLAIN.split)]
    results = {}
    for name, config in RECIPES.items():
        results[name] = measure(config, split, members, arguments.rounds)
        print(name, json.dumps(results[name]))
    record = {
        "processor": read_processor().model,
        "cores": usable_cores(),
        "torch": torch.__version__,
        "kornia": kornia.__version__,
        "rounds": arguments.rounds,
        "batch_size": BATCH,
        "network": f"{PLAIN.network}, S = {PLAIN.split}",
        "recipes": results,
    }
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
