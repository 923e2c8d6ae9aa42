import pytest

from coserve_training.config import TrainConfig


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig(data=("x",), network="resnet20", split=2)
