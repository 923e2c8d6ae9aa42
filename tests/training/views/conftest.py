import pytest
import torch
from torch import Tensor

from coserve_training.config import TrainConfig


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig(data=("x",), network="resnet20", split=2)


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
