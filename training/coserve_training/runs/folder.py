"""The run folder: what training leaves behind, and how it is read back.

config.json      the resolved configuration, labels and preprocessing
metrics.csv      one row per epoch
last.ckpt        after the last epoch; best.ckpt after the one of highest test accuracy
evaluation.json  accuracy of the last checkpoint on the test split (records.py)
samples.npz      up to 64 held-out images, for checks on real inputs
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from coserve_training.config import TrainConfig
from coserve_training.counting import cost
from coserve_training.errors import RunError
from coserve_training.runs.records import measured

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
    saved = _checkpoint(folder, checkpoint)
    members = [config.member_network().build(len(description.labels)).eval() for _ in range(config.split)]
    try:
        state, prefix = saved["state_dict"], "members."
        weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        nn.ModuleList(members).load_state_dict(weights)
        epochs = int(saved["epoch"]) + 1
    # A file that another program wrote holds anything.
    except Exception as error:
        file = folder / f"{checkpoint}.ckpt"
        raise RunError(
            f"{file}: not a checkpoint of {config.network} divided by {config.split}"
            + _other_checkpoint(folder, checkpoint)
        ) from error
    return Run(
        members=members,
        labels=description.labels,
        preprocessing=description.preprocessing,
        provenance=_provenance(description, checkpoint, epochs)
        | measured(folder, checkpoint, epochs, members),
        samples=_samples(folder),
    )


def _checkpoint(folder: Path, name: Checkpoint) -> dict[str, Any]:
    """What a checkpoint holds."""
    file = folder / f"{name}.ckpt"
    try:
        saved: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RunError(f"{file} is missing; has the first epoch finished?") from error
    # Damaged pickles raise whatever their opcodes met: UnpicklingError, RuntimeError, EOFError and others.
    except Exception as error:
        why = (str(error) or "empty").splitlines()[0].split(". ")[0]  # torch's advice comes after
        raise RunError(f"{file}: damaged ({why}){_other_checkpoint(folder, name)}") from error
    return saved


def _other_checkpoint(folder: Path, name: Checkpoint) -> str:
    """What may be used in place of a checkpoint that is of no use."""
    other = "best.ckpt" if name == "last" else "last.ckpt"
    return f"; {other} is there, and may take its place" if (folder / other).exists() else ""


def _samples(folder: Path) -> npt.NDArray[np.uint8]:
    """The held-out images."""
    file = folder / "samples.npz"
    try:
        with np.load(file) as arrays:
            samples: npt.NDArray[np.uint8] = arrays["images"]
    except FileNotFoundError as error:
        raise RunError(f"{file} is missing") from error
    # A damaged archive raises what zipfile, zlib or numpy met.
    except Exception as error:
        raise RunError(f"{file}: damaged ({error})") from error
    return samples


def _provenance(description: Description, checkpoint: Checkpoint, epochs: int) -> dict[str, object]:
    config = description.config
    counted = cost(config.network, config.split, len(description.labels), config.image_size)
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
        "member_networks": [counted.member_network] * config.split,
        "parameters": counted.total.parameters,
        "multiply_adds": counted.total.multiply_adds,
        "member_parameters": counted.member.parameters,
        "member_multiply_adds": counted.member.multiply_adds,
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
