"""Photographs that are reduced to a few pixels."""

import shutil
from pathlib import Path

import pytest

from coserve_training.data import load_dataset
from tests.training.data.photographs import photograph

NOTE = "photographs of about 320x240 pixels are reduced to {0}x{0}; --image-size sets more, at more cost"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for seed in range(3):
                photograph(seed, 320, 240).save(folder / f"{seed}.jpg")
    return tmp_path


@pytest.mark.parametrize(("size", "resize_size", "noted"), [(60, 60, True), (61, 61, False), (48, 64, False)])
def test_far_larger_photographs_are_noted(
    photographs: Path, size: int, resize_size: int, noted: bool
) -> None:
    notes = load_dataset([photographs], size, resize_size=resize_size, workers=0).notes
    assert notes == [NOTE.format(size)] * noted


def test_the_size_is_that_of_most(photographs: Path) -> None:
    photograph(0, 40, 40).save(photographs / "train/cat/0.jpg")
    (photographs / "train/cat/1.jpg").write_bytes(b"broken")
    assert load_dataset([photographs], 32, skip_corrupt=True, workers=0).notes[0] == NOTE.format(32)


def test_evaluation_does_not_note_it(photographs: Path) -> None:
    assert not load_dataset([photographs], 32, workers=0, only=("test", "val")).notes
    # Held-out images lie in train/.
    shutil.rmtree(photographs / "test")
    assert not load_dataset([photographs], 32, workers=0, only=("test", "val")).notes
