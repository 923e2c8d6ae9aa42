"""The time that a run still needs, at the end of each epoch's line."""

from dataclasses import replace

import pytest

from coserve_training.callbacks import _time_left
from coserve_training.config import TrainConfig

PLAIN = TrainConfig(network="wide_resnet10_1", data=("photos",), split=1, epochs=24)


@pytest.mark.parametrize(
    ("trained", "seconds", "words"),
    [
        (1, 60.0, "  23 min left"),
        (1, 600.0, "  3 h 50 min left"),
        (23, 60.0, "  60 s left"),
        (23, 99.0, "  2 min left"),
        (24, 60.0, ""),
    ],
)
def test_the_remaining_epochs_take_as_long_as_the_last(trained: int, seconds: float, words: str) -> None:
    assert _time_left(PLAIN, trained, seconds) == words


def test_larger_images_take_longer() -> None:
    growing = replace(PLAIN, epochs=4, start_size=16, growth_epochs=1)
    assert [growing.size_at(epoch) for epoch in range(4)] == [16, 32, 32, 32]
    assert _time_left(growing, 1, 60.0) == "  12 min left"
