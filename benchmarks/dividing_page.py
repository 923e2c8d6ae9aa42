"""Write the results of `dividing.py` into docs/results/dividing.md.

python benchmarks/dividing_page.py            update the page
python benchmarks/dividing_page.py --check    fail if the page's tables differ from the CSV files
"""

import csv
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

from marked_page import markdown, page_options, update

WHOLE = "co-trained"
"""The way of training that the others are compared with."""

Row = dict[str, str]

COLUMNS = {
    "top-1": ("top1", "{:.2%}"),
    "members alone": ("member_top1", "{:.2%}"),
    "NLL": ("nll", "{:.3f}"),
    "calibrated NLL": ("calibrated_nll", "{:.3f}"),
    "ECE": ("ece", "{:.3f}"),
    "calibrated ECE": ("calibrated_ece", "{:.3f}"),
    "disagreement": ("disagreement", "{:.1%}"),
    "AURC by confidence": ("aurc_confidence", "{:.4f}"),
    "AURC by disagreement": ("aurc_disagreement", "{:.4f}"),
}


def main() -> None:
    """Write or check the page."""
    arguments = page_options(__doc__, "benchmarks/results/dividing", "docs/results/dividing.md").parse_args()
    sections = ["\n".join(section(file)) for file in sorted(arguments.results.glob("*.csv"))]
    update(arguments.page, "benchmarks/dividing_page.py", ["\n\n".join(sections)], arguments.check)


def section(file: Path) -> Iterator[str]:
    """Yield what one network's trainings gave: means with their spread, then differences seed by seed."""
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    network, recipe, epochs = file.stem.removesuffix("_epochs").rsplit("_", 2)
    yield f"### {network}, recipe {recipe}, {epochs} epochs\n"
    yield from markdown(scores(rows))
    table = list(differences(rows))
    if len(table) > 1:
        yield "\nDifferences in top-1 accuracy between trainings of the same seed, in points:\n"
        yield from markdown(table)
    processors = sorted({row["processor"] for row in rows})
    yield f"\nTrained on: {'; '.join(processors)}."


def scores(rows: list[Row]) -> Iterator[list[str]]:
    """Yield a table with a row for each way of training and number of members."""
    yield ["trained", "S", "seeds", *COLUMNS]
    groups = dict.fromkeys((row["way"], row["split"]) for row in rows)
    for way, split in groups:
        group = [row for row in rows if (row["way"], row["split"]) == (way, split)]
        cells = [spread([row[name] for row in group], form) for name, form in COLUMNS.values()]
        yield [way, split, str(len(group)), *cells]


def spread(values: list[str], form: str) -> str:
    """Return the mean, and the standard deviation between seeds; a dash without values."""
    numbers = [float(value) for value in values if value]
    if not numbers:
        return "–"
    text = form.format(mean(numbers))
    if len(numbers) == 1:
        return text
    return f"{text} ± {form.format(stdev(numbers)).removesuffix('%')}"


def differences(rows: list[Row]) -> Iterator[list[str]]:
    """Yield a table that compares dividing with not dividing, and co-training with the other ways."""
    top1 = {((row["way"], row["split"]), row["seed"]): 100 * float(row["top1"]) for row in rows}
    yield ["comparison", "mean", "standard error", "seed by seed"]
    for way, split in dict.fromkeys((row["way"], row["split"]) for row in rows):
        if split == "1":
            continue
        pairs = [(f"S={split}, {way}, against S=1", (way, split), (WHOLE, "1"))]
        if way != WHOLE:
            pairs.append((f"S={split}: {WHOLE} against {way}", (WHOLE, split), (way, split)))
        for text, one, other in pairs:
            seeds = sorted({row["seed"] for row in rows}, key=int)
            both = [seed for seed in seeds if {(one, seed), (other, seed)} <= top1.keys()]
            steps = [top1[one, seed] - top1[other, seed] for seed in both]
            if not steps:
                continue
            error = f"{stdev(steps) / len(steps) ** 0.5:.2f}" if len(steps) > 1 else "–"
            yield [text, f"{mean(steps):+.2f}", error, ", ".join(f"{step:+.2f}" for step in steps)]


if __name__ == "__main__":
    main()
