"""Plot accuracy against multiply-adds for every ensemble in a model repository.

A line for each number of members S joins the ensembles of several networks. Thin lines lead to each ensemble
from fewer of its members: the mean over the subsets of a size, with bars from the worst to the best subset.
All figures come from the provenance, as measured by `coserve evaluate --calibrate`.

    python benchmarks/accuracy_cost.py --repository model_repository --output docs/images/accuracy_cost.png
"""

import argparse
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt

from coserve_bench import plot_style
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.ensembles.repository import read_repository


def accuracy_by_members(ensemble: Ensemble) -> dict[int, list[float]]:
    """Return the top-1 accuracies of all measured subsets, in percent, by number of members."""
    by_size: dict[int, list[float]] = defaultdict(list)
    for subset in ensemble.provenance["accuracy"]["subsets"]:
        by_size[len(subset["members"])].append(100 * subset["top1"])
    return dict(sorted(by_size.items()))


def plot(ensembles: list[Ensemble], output: Path) -> None:
    """Draw a line for each number of members, and write the plot to a PNG."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    by_split: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for ensemble in ensembles:
        provenance = ensemble.provenance
        by_size = accuracy_by_members(ensemble)
        split = provenance["split"]
        cost = [size * provenance["member_multiply_adds"] / 1e6 for size in by_size]
        means = [sum(values) / len(values) for values in by_size.values()]
        bars = [
            [mean - min(values) for mean, values in zip(means, by_size.values(), strict=True)],
            [max(values) - mean for mean, values in zip(means, by_size.values(), strict=True)],
        ]
        axes.errorbar(
            cost, means, bars, color=plot_style.SPLITS[split], linewidth=0.8, linestyle=":", capsize=2
        )
        by_split[split].append((cost[-1], means[-1]))
    for split, points in sorted(by_split.items()):
        axes.plot(
            *zip(*sorted(points), strict=True),
            marker="o",
            color=plot_style.SPLITS[split],
            label=f"S = {split}",
        )
    images = ensembles[0].provenance["accuracy"]["images"]
    axes.set_xlabel("multiply-adds of the members that answer (millions)")
    axes.set_ylabel(f"top-1 accuracy on {images:,} test images (%)")
    axes.set_xlim(left=0)
    axes.legend(loc="lower right")
    # One name for the ensembles of a network, below all of their points.
    for network in {ensemble.provenance["network"] for ensemble in ensembles}:
        whole = [accuracy_by_members(one) for one in ensembles if one.provenance["network"] == network]
        costs = [
            one.provenance["split"] * one.provenance["member_multiply_adds"] / 1e6
            for one in ensembles
            if one.provenance["network"] == network
        ]
        lowest = min(max(by_size.items())[1][0] for by_size in whole)
        middle = (min(costs) + max(costs)) / 2
        axes.annotate(
            network, (middle, lowest), (0, -16), textcoords="offset points", ha="center", fontsize=9,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )  # fmt: skip
    plot_style.save(figure, output)


def main() -> None:
    """Draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--repository", type=Path, default=Path("model_repository"))
    parser.add_argument("--output", type=Path, default=Path("docs/images/accuracy_cost.png"))
    arguments = parser.parse_args()
    ensembles = [
        ensemble
        for ensemble in read_repository(arguments.repository).values()
        if ensemble.provenance.get("accuracy", {}).get("subsets")
    ]
    if not ensembles:
        parser.error(f"{arguments.repository}: no ensemble records the accuracy of its subsets")
    plot(ensembles, arguments.output)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
