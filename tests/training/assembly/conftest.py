from pathlib import Path

import pytest
import torch

from coserve_training import networks
from coserve_training.config import TrainConfig
from tests.training.assembly.recording import Recording, write_coded_images


@pytest.fixture(autouse=True)
def recording_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `recording` name a network. It stays on the CPU, where its tensors are compared."""
    monkeypatch.setattr(networks, "families", lambda: (*networks.FAMILIES, Recording))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="session")
def coded_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of `coded_image`s."""
    return write_coded_images(tmp_path_factory.mktemp("coded"))


@pytest.fixture
def config(coded_images: Path) -> TrainConfig:
    """Return a recipe without augmentation, co-training or warm-up, of two epochs of three steps."""
    return TrainConfig(
        data=(str(coded_images),),
        network="recording",
        split=2,
        epochs=2,
        batch_size=16,
        crop="none",
        flip=False,
        precision="fp32",
        warmup_epochs=0,
        co_training_weight=0,
    )
