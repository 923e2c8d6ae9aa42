"""Photographs that are decoded while they are used: same pixels, and crops that depend only on the seed."""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from coserve_training.config import TrainConfig
from coserve_training.data import Batches, LazyImages, Split, index_batches, load_dataset
from coserve_training.data.workers import ParallelMap
from coserve_training.errors import DataError
from coserve_training.training_run import train
from coserve_training.views import MemberViews
from tests.training.data.photographs import photograph

VIEWS = 2
SIZE = 48


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write JPEGs of 12 shapes in two classes: 24 to train on and 4 to test on."""
    root = tmp_path_factory.mktemp("photographs")
    for split, count in (("train", 12), ("test", 2)):
        for label in ("cat", "dog"):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                photograph(index, 400 + 10 * index, 300).save(folder / f"{index:02}.jpg")
    return root


@pytest.fixture
def folder(photographs: Path, tmp_path: Path) -> Path:
    """Copy the images, for tests that damage them."""
    return Path(shutil.copytree(photographs, tmp_path / "copy"))


def cropped(folder: Path, workers: int = 0, seed: int = 0, skip_corrupt: bool = False) -> Split:
    dataset = load_dataset([folder], SIZE, whole=True, workers=workers, skip_corrupt=skip_corrupt)
    assert dataset.train is not None
    return dataset.train.with_views(views(seed), workers)


def views(seed: int = 0) -> MemberViews:
    config = TrainConfig(data=("x",), network="resnet20", image_size=SIZE, crop="resized", seed=seed)
    return MemberViews(config, range(VIEWS), (0.5, 0.5, 0.5))


class Shuffled:
    """An order whose epoch can be set late, as Lightning does."""

    def __init__(self, count: int, batch_size: int) -> None:
        self.count = count
        self.batch_size = batch_size
        self.epoch = 0

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[np.ndarray]:
        order = np.random.default_rng(self.epoch).permutation(self.count)
        return iter(np.split(order[: len(self) * self.batch_size], len(self)))


def by_index(split: Split, order: Shuffled) -> np.ndarray:
    """Return an epoch's crops `[views, N, H, W, 3]` in the order of the images."""
    images = np.concatenate([images.numpy() for images, _ in Batches(split, order)], axis=1)
    return images[:, np.argsort(np.concatenate(list(order)))]


def test_images_are_the_same_in_memory_and_on_the_fly(photographs: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "photographs"), "zip", photographs))
    kept = load_dataset([photographs], SIZE).train
    assert kept is not None
    assert isinstance(kept.images, np.ndarray)
    for path in (photographs, archive):
        lazy = load_dataset([path], SIZE, cache_bytes=0, workers=2).train
        assert lazy is not None
        assert isinstance(lazy.images, LazyImages)
        assert (lazy.targets == kept.targets).all()
        batches = list(Batches(lazy, index_batches(len(lazy), 5)))
        assert [len(targets) for _, targets in batches] == [5, 5, 5, 5, 4]
        assert (torch.cat([images for images, _ in batches]).numpy() == kept.images).all()
        images, targets = lazy[[3, 20]]
        assert (images == kept.images[[3, 20]]).all()
        assert targets.tolist() == [0, 1]


def test_each_member_has_its_own_crop_of_the_same_image(photographs: Path) -> None:
    split = cropped(photographs)
    images, targets = next(iter(Batches(split, index_batches(len(split), 6))))
    assert images.shape == (VIEWS, 6, SIZE, SIZE, 3)
    assert images.dtype == torch.uint8
    assert targets.tolist() == [0] * 6
    assert (images[0] != images[1]).float().mean(dim=(1, 2, 3)).min() > 0.5


def test_crops_depend_only_on_seed_epoch_and_index(photographs: Path) -> None:
    order = Shuffled(24, 6)
    first = by_index(cropped(photographs), order)
    assert (by_index(cropped(photographs, workers=2), Shuffled(24, 4)) == first).all()
    other_seed = by_index(cropped(photographs, seed=1), order)
    order.epoch = 1
    next_epoch = by_index(cropped(photographs), order)
    for others in (other_seed, next_epoch):
        assert (others != first).mean(axis=(2, 3, 4)).min() > 0.5


def test_the_epoch_may_be_set_after_the_iteration_has_begun(photographs: Path) -> None:
    split = cropped(photographs, workers=2)
    order = Shuffled(24, 12)
    order.epoch = 3
    expected = [images for images, _ in Batches(split, order)]
    order.epoch = 0
    batches = Batches(split, order)
    iteration = iter(batches)
    order.epoch = 3
    assert all((a == b).all() for (a, _), b in zip(iteration, expected, strict=True))
    order.epoch = 4
    assert not all((a == b).all() for (a, _), b in zip(batches, expected, strict=True))


def test_reading_leaves_the_random_stream_alone(photographs: Path) -> None:
    split = cropped(photographs, workers=1)
    torch.manual_seed(0)
    list(Batches(split, index_batches(len(split), 12)))
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert drawn == torch.rand(1)


def test_a_repeated_image_has_another_view_each_time(photographs: Path) -> None:
    split = cropped(photographs)
    images, targets, _ = split.read((0, np.array([3, 3 + 24, 3 + 2 * 24, 3])))
    assert targets.tolist() == [split.targets[3]] * 4
    assert (images[:, 0] == images[:, 3]).all()
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert (images[:, first] != images[:, second]).mean(axis=(1, 2, 3)).min() > 0.5


def test_an_error_in_drawing_a_view_is_not_blamed_on_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(MemberViews, "draw", fail)
    with pytest.raises(ZeroDivisionError):
        LazyImages(np.zeros((2, SIZE, SIZE, 3), np.uint8), SIZE, views()).read(np.array([0]))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_becomes_corrupt_ends_the_epoch_by_name(folder: Path, workers: int) -> None:
    split = cropped(folder, workers)
    batches = Batches(split, index_batches(len(split), 6))
    assert len(list(batches)) == 4
    (folder / "train/dog/03.jpg").write_bytes(b"no image")
    with pytest.raises(DataError) as error:
        list(batches)
    named = f"{folder}/train/dog/03.jpg (not an image in a known format)"
    assert str(error.value) == f"images became unreadable while they were used: {named}"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_corrupt_file_is_replaced_by_another_of_its_class_and_reported(folder: Path, workers: int) -> None:
    split = cropped(folder, workers, skip_corrupt=True)
    for name in ("11.jpg", "00.jpg"):
        (folder / "train/cat" / name).unlink()
    for _ in range(2):
        images, targets = zip(*Batches(split, index_batches(len(split), 6)), strict=True)
        assert torch.cat(targets).tolist() == split.targets.tolist()
        assert torch.cat(images, 1).shape == (VIEWS, 24, SIZE, SIZE, 3)
    assert sorted(split.replaced) == [
        f"{folder}/train/cat/{name} (no such file or directory)" for name in ("00.jpg", "11.jpg")
    ]
    for file in (folder / "train/cat").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"train/cat/00\.jpg .*train/cat/08\.jpg"):
        list(Batches(split, index_batches(len(split), 6)))


def test_a_file_cut_in_the_middle_is_found_before_training(folder: Path) -> None:
    file = folder / "train/dog/07.jpg"
    file.write_bytes(file.read_bytes()[:-300])
    with pytest.raises(DataError, match=r"^1 of 28 images cannot be decoded: .*dog/07\.jpg \(.*truncated"):
        cropped(folder, workers=2)


def test_bytes_that_cameras_append_are_accepted(folder: Path) -> None:
    file = folder / "train/dog/07.jpg"
    file.write_bytes(file.read_bytes() + b"a short film" * 1000)
    assert len(cropped(folder)) == 24


def die(_: object) -> None:
    os._exit(1)


def test_a_killed_worker_is_a_helpful_error() -> None:
    with pytest.raises(DataError, match=r"a process that reads images was killed.*--shm-size"):
        list(ParallelMap(die, [0, 1], 1))


def test_progress_counts_every_image(photographs: Path) -> None:
    told: list[tuple[str, int, int]] = []
    load_dataset([photographs], SIZE, lambda *step: told.append(step), whole=True)
    assert ("checking images", 24, 24) in told
    assert ("decoding images", 4, 4) in told


def test_images_can_be_read_from_pickled_copies(photographs: Path) -> None:
    import pickle

    split = cropped(photographs)
    assert isinstance(split.images, LazyImages)
    copy = pickle.loads(pickle.dumps(replace(split.images, workers=3)))
    assert (copy[:4] == split.images[:4]).all()


def test_a_run_reports_skipped_and_replaced_images(folder: Path, tmp_path: Path) -> None:
    (folder / "train/cat/05.jpg").write_bytes(b"no image")
    config = TrainConfig(
        data=(str(folder),), network="wide_resnet10_1", split=2, epochs=2, batch_size=8, image_size=16,
        crop="resized", skip_corrupt=True, precision="fp32",
    )  # fmt: skip
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if line.startswith("epoch 1/2"):
            for file in sorted((folder / "train/dog").iterdir())[:7]:
                file.unlink()

    evaluation = train(config, tmp_path / "run", report=report)
    assert evaluation is not None
    assert evaluation.images == 4
    copies, reduced, left_out, _, _, replaced = lines
    assert re.fullmatch(r"photographs of about \d+x\d+ pixels are reduced to 16x16; .*", reduced)
    assert copies.startswith("4 test images are training images too, so scores are too good: ")
    name = f"{folder}/train/cat/05.jpg (not an image in a known format)"
    assert left_out == f"1 images cannot be decoded and are left out: {name}"
    # An epoch has two batches of 8, so it does not use all of the 23 images.
    assert 1 <= int(replaced.split(" images became unreadable, others were used instead: ")[0]) <= 7
    assert "train/dog/0" in replaced
    assert "train/dog/07.jpg" not in replaced


def test_a_process_without_a_share_of_the_last_batch_reads_none(photographs: Path) -> None:
    test = load_dataset([photographs], SIZE, cache_bytes=0, workers=0).test
    assert test is not None
    images, targets = test[np.arange(0)]
    assert (images.shape, targets.shape) == ((0, SIZE, SIZE, 3), (0,))
