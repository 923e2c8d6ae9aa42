"""The run folder: what training leaves behind, and how it is read back.

config.json      the resolved configuration, labels and preprocessing
metrics.csv      one row per epoch
last.ckpt        after the last epoch; best.ckpt after the one of highest test accuracy
evaluation.json  accuracy of the last checkpoint on the test split (records.py)
samples.npz      up to 64 held-out images, for checks on real inputs
"""

import json
import os
import pickle
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from coserve_training.config import TrainConfig
from coserve_training.divide import divide
from coserve_training.errors import RunError
from coserve_training.records import measured

Checkpoint = Literal["last", "best"]
SAMPLES = 64


@dataclass(frozen=True)
class Description:
    """What a run trains, beyond its configuration: the content of `config.json`."""

    config: TrainConfig
    labels: list[str]
    mean: list[float]
    std: list[float]
    dataset: str
    initial: dict[str, object] | None = None
    """The provenance's `training` of the run that the members started from."""

    @property
    def preprocessing(self) -> dict[str, object]:
        """As docs/model-repository.md defines it."""
        size = self.config.image_size
        return {
            "height": size,
            "width": size,
            "resize_size": size,
            "interpolation": "bilinear",
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
            RunError: when `folder` is not a run folder, or its description is damaged.
        """
        file = folder / "config.json"
        try:
            values = json.loads(file.read_text())
            return cls(**{**values, "config": TrainConfig.from_json(values["config"])})
        except FileNotFoundError as error:
            raise RunError(f"{folder}: not a run folder (it has no config.json)") from error
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(f"{file}: damaged ({error})") from error


@dataclass(frozen=True)
class Run:
    """A trained ensemble, read back from its run folder."""

    members: list[nn.Module]
    """In evaluation mode, float32: normalised images `[N, 3, H, W]` to logits `[N, C]`."""
    labels: list[str]
    preprocessing: dict[str, object]
    """As docs/model-repository.md defines it."""
    provenance: dict[str, object]
    """As docs/model-repository.md defines it, without `export`."""
    samples: npt.NDArray[np.uint8]
    """Held-out images `[N, H, W, 3]`."""


def load_run(folder: Path, checkpoint: Checkpoint = "last") -> Run:
    """Rebuild the members that a run trained.

    Raises:
        RunError: when the folder is not a run, or a file of it is missing or damaged.
    """
    description = Description.read(folder)
    config = description.config
    file = folder / f"{checkpoint}.ckpt"
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True)
        members = []
        for index in range(config.split):
            member = config.member_network().build(len(description.labels))
            prefix = f"members.{index}."
            weights = {
                k.removeprefix(prefix): v for k, v in saved["state_dict"].items() if k.startswith(prefix)
            }
            member.load_state_dict(weights)
            members.append(member.eval())
        with np.load(folder / "samples.npz") as arrays:
            samples = arrays["images"]
    except FileNotFoundError as error:
        raise RunError(f"{error.filename} is missing; has the first epoch finished?") from error
    except (OSError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError, EOFError) as error:
        raise RunError(f"{file}: damaged ({str(error).splitlines()[0]})") from error
    epochs = int(saved["epoch"]) + 1
    return Run(
        members=members,
        labels=description.labels,
        preprocessing=description.preprocessing,
        provenance=_provenance(description, checkpoint, epochs)
        | measured(folder, checkpoint, epochs, members),
        samples=samples,
    )


def _provenance(description: Description, checkpoint: Checkpoint, epochs: int) -> dict[str, object]:
    config = description.config
    division = divide(config.network, config.split, len(description.labels), config.image_size)
    training: dict[str, object] = {
        "recipe_hash": config.recipe_hash,
        "epochs": epochs,
        "planned_epochs": config.epochs,
        "checkpoint": checkpoint,
    }
    if description.initial is not None:
        training["initial"] = description.initial
    return {
        "network": config.network,
        "split": config.split,
        "dataset": description.dataset,
        "member_networks": [division.member_network] * config.split,
        "parameters": division.total.parameters,
        "multiply_adds": division.total.multiply_adds,
        "member_parameters": division.member.parameters,
        "member_multiply_adds": division.member.multiply_adds,
        "training": training,
    }


def write_atomically(file: Path, content: bytes | memoryview) -> None:
    """Write beside the file, through to the disk, and rename: a reader or a crash never meets half a file.

    Raises:
        RunError: it cannot be written; what was there stays.
    """
    partial = file.with_name(f".{file.name}.partial")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RunError(f"cannot write {file}: {error.strerror or error}") from error
