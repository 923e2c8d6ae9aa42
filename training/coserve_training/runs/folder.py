"""The run folder that training writes, and loading a run from it.

config.json      configuration, labels and preprocessing
metrics.csv      one row per epoch
last.ckpt        checkpoint of the last epoch
best.ckpt        checkpoint of the epoch with the highest accuracy on the validation split, or the test split
evaluation.json  accuracy of the last checkpoint on the test split (records.py)
images.npz       hashes of the images that were trained on and tested on (images.py)
samples.npz      up to 64 held-out images, for checks on real inputs
.lock            locked while a training uses the folder (lock.py)
"""

import json
import os
import secrets
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from coserve_training.config import TrainConfig
from coserve_training.counting import cost
from coserve_training.errors import ConfigError, RunError
from coserve_training.recipes import recipe_hash
from coserve_training.runs.records import read_records

Checkpoint = Literal["last", "best"]
SAMPLES = 64


@dataclass(frozen=True)
class Extension:
    """More epochs than a run was planned for.

    Attributes:
        after: number of epochs that were finished then.
        planned: number of epochs until then.
        epochs: number of epochs from then on.
    """

    after: int
    planned: int
    epochs: int


@dataclass(frozen=True)
class Description:
    """The content of `config.json`: a run's configuration, and what it found in its data.

    Attributes:
        config: the configuration.
        labels: names of the classes, by index.
        mean: mean of each channel over the training images, of pixels in [0, 1].
        std: standard deviation of each channel, likewise.
        dataset: name of the data set.
        initial: provenance (`training`) of the run that the members started from, if any.
        initial_weights: digest of its weights.
        chosen_on: name of the split that chooses the best epoch; None if an earlier version began the run.
        extended: when the run was given more epochs.
    """

    config: TrainConfig
    labels: list[str]
    mean: list[float]
    std: list[float]
    dataset: str
    initial: dict[str, object] | None = None
    initial_weights: str | None = None
    chosen_on: str | None = None
    extended: list[Extension] = field(default_factory=list)

    @property
    def preprocessing(self) -> dict[str, object]:
        """The preprocessing that members expect, as defined in docs/reference/model-repository.md."""
        config = self.config
        return {
            "height": config.image_size,
            "width": config.image_size,
            "resize_size": config.resize_size,
            "interpolation": config.interpolation,
            "mean": self.mean,
            "std": self.std,
        }

    def write(self, folder: Path) -> None:
        """Write `config.json`."""
        write_atomically(folder / "config.json", (json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> "Description":
        """Read `config.json`.

        Raises:
            RunError: if `folder` is not a run folder, or its description is damaged.
        """
        file = folder / "config.json"
        try:
            values = json.loads(file.read_text())
            if not isinstance(values, dict) or not isinstance(values["config"], dict):
                raise ValueError("not a run's configuration")
            extended = [Extension(**extension) for extension in values.get("extended", [])]
            config = TrainConfig.from_json(values["config"])
            return cls(**{**values, "config": config, "extended": extended})
        except (FileNotFoundError, NotADirectoryError) as error:
            why = "it is a file; give the folder of the run" if folder.is_file() else "it has no config.json"
            raise RunError(f"{folder}: not a run folder ({why})") from error
        except (OSError, ValueError, TypeError, KeyError, ConfigError) as error:
            raise RunError(f"{file}: damaged ({error})") from error


@dataclass(frozen=True)
class Run:
    """A trained ensemble, loaded from its run folder.

    Attributes:
        members: networks in evaluation mode, float32: normalised images `[N, 3, H, W]` to logits `[N, C]`.
        labels: names of the classes, by index.
        preprocessing: what members expect, as defined in docs/reference/model-repository.md.
        provenance: how the ensemble was made (docs/reference/model-repository.md), without `export`.
        samples: held-out images `[N, H, W, 3]`.
        folder: the run folder; None for networks that come from elsewhere.
    """

    members: list[nn.Module]
    labels: list[str]
    preprocessing: dict[str, object]
    provenance: dict[str, object]
    samples: npt.NDArray[np.uint8]
    folder: Path | None = None


def load_run(folder: Path | str, checkpoint: Checkpoint = "last") -> Run:
    """Load a trained ensemble from its run folder.

    Args:
        folder: the run folder.
        checkpoint: "last", or "best" for the best epoch (docs/guides/training/data.md, Splits).

    Raises:
        RunError: if the folder is not a run folder, or one of its files is missing or damaged.
    """
    folder = Path(folder)
    description = Description.read(folder)
    config = description.config
    saved = _read_checkpoint(folder, checkpoint)
    members = [config.member_network().build(len(description.labels)).eval() for _ in range(config.split)]
    try:
        state = saved["state_dict"]
        prefix = "members."
        weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        nn.ModuleList(members).load_state_dict(weights)
        epochs = int(saved["epoch"]) + 1
    # A file of another program may hold anything.
    except Exception as error:
        file = folder / f"{checkpoint}.ckpt"
        raise RunError(
            f"{file}: not a checkpoint of {config.network} divided by {config.split}"
            + name_other_checkpoint(folder, checkpoint)
        ) from error
    return Run(
        members=members,
        labels=description.labels,
        preprocessing=description.preprocessing,
        provenance=_describe_provenance(description, checkpoint, epochs)
        | read_records(folder, checkpoint, epochs, members),
        samples=_read_samples(folder),
        folder=folder,
    )


def _read_checkpoint(folder: Path, name: Checkpoint) -> dict[str, Any]:
    file = folder / f"{name}.ckpt"
    try:
        saved: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        full = " at full size" if name == "best" else ""
        raise RunError(f"{file} is missing; has an epoch{full} finished?") from error
    # Damaged pickles raise many types of errors: UnpicklingError, RuntimeError, EOFError and others.
    except Exception as error:
        reason = (str(error) or "empty").splitlines()[0].split(". ")[0]  # without torch's advice
        raise RunError(f"{file}: damaged ({reason}){name_other_checkpoint(folder, name)}") from error
    return saved


def name_other_checkpoint(folder: Path, name: Checkpoint) -> str:
    """Return a hint to use the run's other checkpoint; an empty string if there is none."""
    other = "best.ckpt" if name == "last" else "last.ckpt"
    return f"; {other} exists and can replace it" if (folder / other).exists() else ""


def _read_samples(folder: Path) -> npt.NDArray[np.uint8]:
    file = folder / "samples.npz"
    try:
        with np.load(file) as arrays:
            samples: npt.NDArray[np.uint8] = arrays["images"]
    except FileNotFoundError as error:
        raise RunError(f"{file} is missing") from error
    # Damaged archives raise errors of zipfile, zlib and numpy.
    except Exception as error:
        raise RunError(f"{file}: damaged ({error})") from error
    return samples


def _describe_provenance(description: Description, checkpoint: Checkpoint, epochs: int) -> dict[str, object]:
    config = description.config
    counted = cost(config.network, config.split, len(description.labels), config.image_size)
    training: dict[str, object] = {
        "recipe_hash": recipe_hash(config),
        "seed": config.seed,
        "epochs": epochs,
        "planned_epochs": config.epochs,
        "checkpoint": checkpoint,
    }
    if description.chosen_on is not None:
        training["chosen_on"] = description.chosen_on
    extended = [asdict(extension) for extension in description.extended if extension.after < epochs]
    if extended:
        training["extended"] = extended
    if description.initial is not None:
        training["initial"] = description.initial
    return {
        "network": config.network,
        "split": config.split,
        "dataset": description.dataset,
        "member_networks": [counted.member_network] * config.split,
        "parameters": counted.total.parameters,
        "multiply_adds": counted.total.multiply_adds,
        "member_parameters": counted.member.parameters,
        "member_multiply_adds": counted.member.multiply_adds,
        "training": training,
    }


def write_atomically(file: Path, content: bytes | memoryview) -> None:
    """Write a temporary file, flush it to disk and rename it: neither readers nor crashes see half a file.

    Raises:
        RunError: if it cannot be written. The previous file then stays as it was.
    """
    # Two evaluations of a run may write at once.
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as error:
        raise RunError(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            partial.unlink()
