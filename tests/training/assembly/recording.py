"""Members that record what training gives them, and images that show where each of their pixels came from."""

import csv
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from coserve_training.config import TrainConfig
from coserve_training.networks.config import NetworkConfig
from coserve_training.runs.folder import Description
from coserve_training.training_run import train

SIDE = 32
TRAINING_IMAGES = 48
TEST_IMAGES = 30
LABELS = ["a", "b", "c"]


@dataclass
class Call:
    """One forward pass of one member.

    Attributes:
        member: the network.
        training: whether it was in training mode.
        images: its input `[N, 3, H, W]`.
        logits: its output `[N, C]`.
        weights: its parameters before the pass.
        noise: random numbers that it drew, as dropout does.
        gradients: the loss's gradients of its parameters, by name, and of its `logits`.
    """

    member: nn.Module
    training: bool
    images: Tensor
    logits: Tensor
    weights: dict[str, Tensor]
    noise: Tensor
    gradients: dict[str, Tensor] = field(default_factory=dict)


calls: list[Call] = []
"""The forward passes since the last `record`."""


class RecordingNetwork(nn.Module):
    """A convolution, a batch norm and a classifier, which take images of any size."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 4, stride=4, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.classifier = nn.Linear(8, num_classes)
        for name, parameter in self.named_parameters():
            parameter.register_hook(partial(self._note, name))  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor) -> Tensor:
        """Map `[N, 3, H, W]` to `[N, C]`, and record both."""
        logits: Tensor = self.classifier(torch.relu(self.norm(self.convolution(images))).mean((2, 3)))
        if images.device.type != "meta":
            weights = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}
            seen = images.detach().clone()
            calls.append(Call(self, self.training, seen, logits.detach().clone(), weights, torch.rand(9)))
            if logits.requires_grad:
                logits.register_hook(partial(self._note, "logits"))  # type: ignore[no-untyped-call]
        return logits

    def _note(self, name: str, gradient: Tensor) -> None:
        last = next(call for call in reversed(calls) if call.member is self)
        last.gradients[name] = gradient.detach().clone()


@dataclass(frozen=True, kw_only=True)
class Recording(NetworkConfig):
    """The family of `RecordingNetwork`, whose members are as wide as the undivided network."""

    pattern = "recording"

    @classmethod
    def parse(cls, name: str) -> "Recording | None":
        return cls() if name == "recording" else None

    def divide(self, split: int) -> "Recording":
        return self

    def build(self, num_classes: int) -> nn.Module:
        return RecordingNetwork(num_classes)

    def __str__(self) -> str:
        return "recording"


@dataclass(frozen=True)
class Step:
    """A batch that all members have seen, in training or in testing."""

    calls: list[Call]

    @property
    def views(self) -> Tensor:
        """The members' inputs `[S, N, 3, H, W]`."""
        return torch.stack([call.images for call in self.calls])

    @property
    def logits(self) -> Tensor:
        """The members' outputs `[S, N, C]`."""
        return torch.stack([call.logits for call in self.calls])

    @property
    def gradient(self) -> Tensor:
        """The loss's gradient of `logits`."""
        return torch.stack([call.gradients["logits"] for call in self.calls])

    def pixels(self, description: Description) -> npt.NDArray[np.float64]:
        """Return the views before they were normalised, from 0 to 255, `[S, N, H, W, 3]`."""
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (description.mean, description.std))
        pixels = ((self.views * std + mean) * 255).permute(0, 1, 3, 4, 2)
        return np.asarray(pixels.double())

    def images(self, description: Description) -> Tensor:
        """Return the indices of coded images without holes, `[N]`; blends have indices in between."""
        return torch.from_numpy((self.pixels(description)[0, :, SIDE // 4, SIDE // 4, 2] - 4) / 3)

    def classes(self, description: Description) -> Tensor:
        """Return the classes of coded images `[N]`."""
        return torch.tensor([label(round(image)) for image in self.images(description).tolist()])


class Recorded(NamedTuple):
    """The recording of a run.

    Attributes:
        steps: its training steps.
        tests: batches of its tests after each epoch, and of the last evaluation.
        description: what it wrote into its folder.
        folder: the run folder.
    """

    steps: list[Step]
    tests: list[Step]
    description: Description
    folder: Path

    def metrics(self, name: str) -> list[float]:
        """Return a column of `metrics.csv`."""
        with (self.folder / "metrics.csv").open() as file:
            return [float(row[name]) for row in csv.DictReader(file)]


def record(config: TrainConfig, folder: Path) -> Recorded:
    """Train, and return what the members recorded."""
    calls.clear()
    train(config, folder, workers=0, report=lambda _: None)
    return Recorded(
        _steps([call for call in calls if call.training], config.split),
        _steps([call for call in calls if not call.training], config.split),
        Description.read(folder),
        folder,
    )


def _steps(found: list[Call], members: int) -> list[Step]:
    return [Step(found[start : start + members]) for start in range(0, len(found), members)]


def coded_image(index: int) -> npt.NDArray[np.uint8]:
    """Make an image whose red tells the row, green the column and blue the image; none of them is 0."""
    place = np.arange(SIDE)
    image = np.empty((SIDE, SIDE, 3), np.uint8)
    image[..., 0] = 4 + 7 * place[:, None]
    image[..., 1] = 4 + 7 * place
    image[..., 2] = 4 + 3 * index
    return image


def write_coded_images(folder: Path) -> Path:
    """Write coded images: `TRAINING_IMAGES` in `train/`, and behind them `TEST_IMAGES` in `test/`."""
    for split, indices in (
        ("train", range(TRAINING_IMAGES)),
        ("test", range(TRAINING_IMAGES, TRAINING_IMAGES + TEST_IMAGES)),
    ):
        for index in indices:
            file = folder / split / LABELS[label(index)] / f"{index:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(coded_image(index)).save(file)
    return folder


def label(index: int) -> int:
    """Return a coded image's class."""
    return index % len(LABELS)
