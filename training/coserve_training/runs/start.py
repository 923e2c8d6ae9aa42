"""The files of a run folder that are written before the first epoch, and what a resume changes in them."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np

from coserve_training.config import TrainConfig
from coserve_training.data import Dataset, Known, Split, name_some
from coserve_training.errors import RunError
from coserve_training.runs.evaluate import channel_statistics
from coserve_training.runs.folder import SAMPLES, Description, Extension, Run, load_run, write_atomically
from coserve_training.runs.images import write_known
from coserve_training.runs.records import weights_digest


def load_initial(config: TrainConfig, labels: list[str]) -> Run:
    """Load the run that the members start from, and check that it fits.

    Raises:
        RunError: if it cannot be loaded, or has another network, split or classes.
    """
    folder = Path(str(config.initial))
    start = load_run(folder)
    for name, wanted in (("network", config.network), ("split", config.split)):
        if start.provenance[name] != wanted:
            raise RunError(f"{folder} holds {name} {start.provenance[name]}, not {wanted}")
    if start.labels != labels:
        raise RunError(f"{folder} was trained on other classes: {name_some(start.labels)}")
    return start


def check_initial(folder: Path, description: Description, initial: Run) -> None:
    """Check that a run which has no checkpoint yet would start from the same weights again.

    Raises:
        RunError: if the run that it starts from has changed.
    """
    if description.initial_weights not in (None, weights_digest(initial.members)):
        raise RunError(
            f"{description.config.initial} has changed since {folder} was started from its weights, and "
            "no epoch has finished since; start another run with --initial"
        )


def describe(config: TrainConfig, dataset: Dataset, training: Split, initial: Run | None) -> Description:
    """Describe a new run."""
    if config.mean is None or config.std is None:
        mean, std = channel_statistics(training)
    else:
        mean = list(config.mean)
        std = list(config.std)
    return Description(
        config,
        dataset.labels,
        mean,
        std,
        "+".join(_dataset_names(config)),
        None if initial is None else dict(initial.provenance["training"]),  # type: ignore[call-overload]
        None if initial is None else weights_digest(initial.members),
        _name_choosing(dataset),
    )


def describe_resumed(
    stored: Description, config: TrainConfig, dataset: Dataset, added: int, finished: int
) -> tuple[Description, list[str]]:
    """Describe a resumed run.

    Args:
        stored: the description until now.
        config: the configuration to resume with.
        dataset: the data to resume with.
        added: number of its training images that are new to the run.
        finished: number of finished epochs.

    Returns:
        The description from now on, and lines to report.
    """
    lines = []
    extended = [extension for extension in stored.extended if extension.after < finished]
    if config.epochs > stored.config.epochs:
        # Extensions without an epoch in between are one.
        planned = [e.planned for e in stored.extended if e.after == finished] + [stored.config.epochs]
        extended.append(Extension(after=finished, planned=planned[0], epochs=config.epochs))
    else:
        extended = stored.extended
    names = stored.dataset.split("+")
    if added:
        names += _dataset_names(config)
    chosen_on = _name_choosing(dataset)
    if stored.chosen_on not in (None, chosen_on):
        lines.append(
            f"best.ckpt is chosen on {chosen_on} images from now on, not on {stored.chosen_on} images"
        )
    return replace(
        stored,
        config=config,
        dataset="+".join(dict.fromkeys(names)),
        chosen_on=chosen_on,
        extended=extended,
    ), lines


def check_new(folder: Path) -> None:
    """Check that a folder holds no run.

    Raises:
        RunError: if it does.
    """
    if (folder / "config.json").exists():
        raise RunError(f"{folder} holds a run already; continue it with --resume, or choose another --output")


def begin(folder: Path, description: Description, known: Known, test: Split) -> None:
    """Write the files of a new run. `config.json` is the last one: with it, the run can be resumed.

    Raises:
        RunError: if they cannot be written, or another run began here while the data were read.
    """
    check_new(folder)
    chosen = np.linspace(0, len(test) - 1, min(SAMPLES, len(test))).round().astype(int)
    samples = io.BytesIO()
    np.savez_compressed(samples, images=test.images[chosen])
    write_atomically(folder / "samples.npz", samples.getbuffer())
    write_known(folder, known)
    description.write(folder)


def _dataset_names(config: TrainConfig) -> list[str]:
    return list(dict.fromkeys(_dataset_name(Path(path)) for path in config.data))


def _dataset_name(path: Path) -> str:
    return path.name.split(".")[0].removesuffix("-train").removesuffix("-test") or path.resolve().name


def _name_choosing(dataset: Dataset) -> str:
    """Name the split that chooses the best epoch."""
    return dataset.test_name if dataset.val is None else "val"
