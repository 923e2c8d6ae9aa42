"""Measure whether dividing a network helps: train it undivided and divided, several times, in several ways.

There are three ways of training: co-trained, as the recipe has it; independent (--co-training-weight 0); and
co-trained with the same view of each image for all members (--no-own-views). One member has nobody to learn
from, so S=1 is trained in one way.

    python benchmarks/dividing.py --data cifar10-train.zip --data cifar10-test.zip

Each training takes from minutes to hours. A stopped script goes on where it was, and several may run beside
each other. Every finished training adds a line to a table in `benchmarks/results/dividing/`, one for each
network, recipe and number of epochs. It refuses to go on with lines and runs of other data, by their files'
names, or of another recipe of the same name.
"""

import argparse
import csv
import fcntl
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean
from typing import IO, Any

from coserve_bench.output import write_whole
from coserve_server.machine.processor import read_processor
from coserve_training.config import TrainConfig
from coserve_training.errors import TrainingError
from coserve_training.recipes import recipe_hash, with_recipe

RESULTS = Path(__file__).parent / "results" / "dividing"
WAYS: dict[str, dict[str, float | bool]] = {
    "co-trained": {},
    "independent": {"co_training_weight": 0.0},
    "same view": {"own_views": False},
}
"""Options of each way besides the recipe's."""
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


class OtherSettingsError(Exception):
    """A line or a run was made with other settings."""


@dataclass(frozen=True)
class Settings:
    """What the results of a training depend on besides its way, S and seed.

    Attributes:
        data: names of the files or folders of images.
        recipe_hash: as in the provenance of ensembles.
    """

    data: str
    recipe_hash: str

    @classmethod
    def from_config(cls, config: TrainConfig) -> "Settings":
        """Return the settings of a run."""
        return cls(" ".join(Path(path).name for path in config.data), recipe_hash(config))

    @classmethod
    def from_options(cls, training: Training, options: argparse.Namespace) -> "Settings":
        """Return the settings with which `train` would begin a run.

        Raises:
            TrainingError: the recipe or the network is not valid.
        """
        given = {
            # Recipes recognise data by the names of their files and folders.
            "data": tuple(str(Path(path).absolute()) for path in options.data),
            "network": options.network,
            "split": training.split,
            "epochs": options.epochs,
            **WAYS[training.way],
        }
        return cls.from_config(TrainConfig.from_json(with_recipe(options.recipe, given)))


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
    data: str
    recipe_hash: str


def plan(splits: list[int], ways: list[str], seeds: list[int]) -> Iterator[Training]:
    """Yield all trainings, seed by seed, so that a stopped comparison has whole seeds."""
    for seed in seeds:
        trainings = [Training(way if split > 1 else ALONE, split, seed) for way in ways for split in splits]
        yield from dict.fromkeys(trainings)


def check(options: argparse.Namespace, trainings: Sequence[Training], table: Path, runs: Path) -> None:
    """Check that what has been made so far was made with these settings.

    Args:
        trainings: those whose runs are checked; of the table, every line is.

    Raises:
        OtherSettingsError: a line or a run was not.
        TrainingError: the recipe or the network is not valid.
    """
    for file, training, found in made(trainings, table, runs):
        for name, wanted in asdict(Settings.from_options(training, options)).items():
            # Earlier lines do not tell.
            if found.get(name) and found[name] != wanted:
                raise OtherSettingsError(
                    f"{file}: {training.name} was trained with {name} {found[name]}, not {wanted}; other "
                    "settings need --runs and --results of their own"
                )


def made(
    trainings: Sequence[Training], table: Path, runs: Path
) -> Iterator[tuple[Path, Training, dict[str, str]]]:
    """Yield each line and begun run, with the file that tells its settings."""
    for row in read(table):
        yield table, Training(row["way"], int(row["split"]), int(row["seed"])), row
    for training in trainings:
        file = runs / training.name / "config.json"
        if file.exists():
            config = TrainConfig.from_json(json.loads(file.read_text("utf-8"))["config"])
            yield file, training, asdict(Settings.from_config(config))


def train(training: Training, options: argparse.Namespace, folder: Path, lock: IO[str]) -> None:
    """Train, or go on where a stopped training was; hold the lock until the training has ended."""
    data = [part for path in options.data for part in ("--data", path)]
    way = [part for name, value in WAYS[training.way].items() for part in flag(name, value)]
    command = [
        *("coserve", "train", "--recipe", options.recipe, *data, "--network", options.network),
        *("--split", training.split, "--epochs", options.epochs, "--seed", training.seed),
        *("--workers", options.workers, "--output", folder, *way),
        *(("--resume",) if (folder / "config.json").exists() else ()),
    ]
    # The training may outlive this process.
    subprocess.run([str(part) for part in command], check=True, pass_fds=[lock.fileno()])


def flag(name: str, value: float | bool) -> tuple[str, ...]:
    """Return an option of the configuration as one of the command."""
    option = name.replace("_", "-")
    return (f"--no-{option}",) if value is False else (f"--{option}", str(value))


def evaluate(training: Training, settings: Settings, folder: Path) -> Row:
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
        **asdict(settings),
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
def locked(file: Path, wait: bool = True) -> Iterator[IO[str] | None]:
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
    runs = options.runs / name
    trainings = list(plan(options.splits, options.ways, options.seeds))
    for training in trainings:
        folder = runs / training.name
        # Each time, since others may be adding.
        check(options, trainings, table, runs)
        settings = Settings.from_options(training, options)
        with locked(folder.with_suffix(".lock"), wait=False) as mine:
            done = {(row["way"], int(row["split"]), int(row["seed"])) for row in read(table)}
            if mine is None or (training.way, training.split, training.seed) in done:
                state = "trained by another process" if mine is None else "done"
                print(f"{name}: {training.name} is {state}", file=sys.stderr)
                continue
            print(f"{name}: {training.name}", file=sys.stderr)
            train(training, options, folder, mine)
            add(table, evaluate(training, settings, folder), options.runs / "table.lock")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {' '.join(error.cmd[:2])} ended with status {error.returncode}")
    except (TrainingError, OtherSettingsError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")
