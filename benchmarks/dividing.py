"""Measure whether dividing a network helps: train it undivided and divided, several times, in several ways.

There are three ways of training: co-trained, as the recipe has it; independent (--co-training-weight 0); and
co-trained with the same view of each image for all members (--no-own-views). One member has nobody to learn
from, so S=1 is trained in one way.

    python benchmarks/dividing.py --data cifar10-train.zip --data cifar10-test.zip

Each training takes from minutes to hours. A stopped script goes on where it was, and several may run beside
each other. Every finished training adds a line to a table in `benchmarks/results/dividing/`, one for each
network, recipe and number of epochs.
"""

import argparse
import csv
import fcntl
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any

from coserve_bench.output import write_whole
from coserve_server.machine.processor import read_processor

RESULTS = Path(__file__).parent / "results" / "dividing"
WAYS = {
    "co-trained": (),
    "independent": ("--co-training-weight", "0"),
    "same view": ("--no-own-views",),
}
ALONE = "co-trained"
"""The way that S=1 is trained in, whatever the others are."""


@dataclass(frozen=True)
class Training:
    """One training of the comparison."""

    way: str
    split: int
    seed: int

    @property
    def name(self) -> str:
        """Name of its run folder."""
        return f"{self.way.replace(' ', '_')}_s{self.split}_seed{self.seed}"


@dataclass(frozen=True)
class Row:
    """What one training gave. Shares are in [0, 1], `nll` and `ece` are at temperature 1.

    `calibrated_nll` and `calibrated_ece` are measured on images that their temperature was not fitted on. One
    member has no disagreement.
    """

    way: str
    split: int
    seed: int
    top1: float
    member_top1: float
    nll: float
    calibrated_nll: float
    ece: float
    calibrated_ece: float
    disagreement: float | None
    pairwise_disagreement: float | None
    aurc_confidence: float
    aurc_disagreement: float | None
    processor: str


def plan(splits: list[int], ways: list[str], seeds: list[int]) -> Iterator[Training]:
    """Yield all trainings, seed by seed, so that a stopped comparison has whole seeds."""
    for seed in seeds:
        trainings = [Training(way if split > 1 else ALONE, split, seed) for way in ways for split in splits]
        yield from dict.fromkeys(trainings)


def train(training: Training, options: argparse.Namespace, folder: Path) -> None:
    """Train, or go on where a stopped training was."""
    data = [part for path in options.data for part in ("--data", path)]
    command = [
        *("coserve", "train", "--recipe", options.recipe, *data, "--network", options.network),
        *("--split", training.split, "--epochs", options.epochs, "--seed", training.seed),
        *("--workers", options.workers, "--output", folder, *WAYS[training.way]),
        *(("--resume",) if (folder / "last.ckpt").exists() else ()),
    ]
    subprocess.run([str(part) for part in command], check=True)


def evaluate(training: Training, folder: Path) -> Row:
    """Return the scores of a finished training on the test images."""
    command = ["coserve", "evaluate", str(folder), "--calibrate", "--json"]
    scores: dict[str, Any] = json.loads(subprocess.check_output(command, text=True))
    whole = max(scores["subsets"], key=lambda subset: len(subset["members"]))
    doubt = scores["selective_accuracy"]
    several = training.split > 1
    known = read_processor()
    return Row(
        way=training.way,
        split=training.split,
        seed=training.seed,
        top1=scores["ensemble"]["top1"],
        member_top1=mean(member["top1"] for member in scores["members"]),
        nll=scores["ensemble"]["nll"],
        calibrated_nll=whole["calibrated_nll"],
        ece=scores["ensemble"]["ece"],
        calibrated_ece=whole["calibrated_ece"],
        disagreement=scores["disagreement"] if several else None,
        pairwise_disagreement=scores["pairwise_disagreement"] if several else None,
        aurc_confidence=doubt["confidence"]["aurc"],
        aurc_disagreement=doubt["disagreement"]["aurc"] if several else None,
        processor=f"{known.model} ({', '.join(known.features)})",
    )


def add(file: Path, row: Row, lock: Path) -> None:
    """Add a line to the table, to which other processes may be adding too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock):
        rows = read(file)
        rows.append({name: "" if value is None else str(value) for name, value in asdict(row).items()})
        rows.sort(key=lambda one: (list(WAYS).index(one["way"]), int(one["split"]), int(one["seed"])))
        table = io.StringIO()
        writer = csv.DictWriter(table, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(file, table.getvalue())


def read(file: Path) -> list[dict[str, str]]:
    """Return the table's lines; none if there is no table yet."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@contextmanager
def locked(file: Path, wait: bool = True) -> Iterator[object | None]:
    """Hold a lock on a file; without `wait`, give None if another process holds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
        else:
            yield lock


def main() -> None:
    """Run what has not been run yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", action="append", required=True, help="as for coserve train; repeatable")
    parser.add_argument("--network", default="wide_resnet10_4")
    parser.add_argument("--recipe", default="cifar-fast")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--splits", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1, help="processes that read images, per training")
    parser.add_argument("--runs", type=Path, default=Path("runs/dividing"), help="folder of the run folders")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    # The page takes the name apart at its last underscores.
    recipe = Path(options.recipe).stem.replace("_", "-")
    name = f"{options.network}_{recipe}_{options.epochs}_epochs"
    table = options.results / f"{name}.csv"
    for training in plan(options.splits, options.ways, options.seeds):
        folder = options.runs / name / training.name
        with locked(folder.with_suffix(".lock"), wait=False) as mine:
            done = {(row["way"], int(row["split"]), int(row["seed"])) for row in read(table)}
            if mine is None or (training.way, training.split, training.seed) in done:
                state = "trained by another process" if mine is None else "done"
                print(f"{name}: {training.name} is {state}", file=sys.stderr)
                continue
            print(f"{name}: {training.name}", file=sys.stderr)
            train(training, options, folder)
            add(table, evaluate(training, folder), options.runs / "table.lock")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {' '.join(error.cmd[:2])} ended with status {error.returncode}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
