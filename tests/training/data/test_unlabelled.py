"""Images without labels, from any layout."""

import zipfile
from pathlib import Path

import pytest
from PIL import Image

from coserve_training.data import Unlabelled, load_unlabelled
from coserve_training.errors import DataError
from tests.training.data.test_dataset import cifar_files


def write(file: Path, level: int = 0) -> Path:
    """Write a grey image."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 36), (level,) * 3).save(file)
    return file


def load(path: Path, limit: int | None = None, cache_bytes: int = 1 << 30) -> Unlabelled:
    return load_unlabelled(path, 32, limit=limit, workers=0, cache_bytes=cache_bytes)


def levels(found: Unlabelled) -> list[int]:
    pixels, targets = found.split[:]
    assert pixels.shape[1:] == (32, 32, 3)
    assert not targets.any()
    return sorted(pixels[:, 0, 0, 0].tolist())


def test_a_flat_folder_and_folders_of_any_depth(tmp_path: Path) -> None:
    write(tmp_path / "a.png", 1)
    write(tmp_path / "cats/b.png", 2)
    write(tmp_path / "dogs/old/c.png", 3)
    found = load(tmp_path)
    assert levels(found) == [1, 2, 3]
    assert found.skipped == found.notes == []


def test_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write(write(tmp_path / "a.png", 1), "deep/a.png")
        archive.write(write(tmp_path / "b.png", 2), "b.png")
        archive.writestr("read.me", "")
    found = load(tmp_path / "photos.zip")
    assert levels(found) == [1, 2]
    assert found.notes == [
        f"{tmp_path}/photos.zip: not taken: 1 file without an image's suffix (1 .me)",
    ]


def test_training_images_give_way_to_others(tmp_path: Path) -> None:
    write(tmp_path / "train/cat/a.png", 1)
    write(tmp_path / "train/cat/b.png", 2)
    assert levels(load(tmp_path)) == [1, 2]
    write(tmp_path / "test/cat/c.png", 3)
    write(tmp_path / "valid/d.png", 4)
    found = load(tmp_path)
    assert levels(found) == [3, 4]
    assert found.notes == [f"{tmp_path}: 2 training images are not used, only those for testing"]
    assert levels(load(tmp_path / "train")) == [1, 2]


@pytest.mark.parametrize("cache_bytes", [0, 1 << 30])
def test_images_that_cannot_be_decoded_are_named_and_left_out(tmp_path: Path, cache_bytes: int) -> None:
    write(tmp_path / "a.png", 1)
    (tmp_path / "b.jpg").write_bytes(b"no image")
    (tmp_path / "c.png").symlink_to(tmp_path / "gone.png")
    found = load(tmp_path, cache_bytes=cache_bytes)
    assert levels(found) == [1]
    assert found.skipped == [
        f"{tmp_path}/c.png (no such file or directory)",
        f"{tmp_path}/b.jpg (not an image in a known format)",
    ]
    assert found.notes == [f"2 images cannot be decoded and are left out: {'; '.join(found.skipped)}"]


def test_a_limit_spaces_images_evenly_and_says_so(tmp_path: Path) -> None:
    for level in range(9):
        write(tmp_path / f"{level}.png", level)
    found = load(tmp_path, limit=3)
    assert levels(found) == [0, 4, 8]
    assert found.notes == [f"{tmp_path}: 3 of 9 images are used"]
    assert load(tmp_path, limit=9).notes == []


def test_official_files(tmp_path: Path) -> None:
    folder = cifar_files(tmp_path, "cifar-10-batches-py")
    found = load(folder)
    assert len(found.split) == 20
    assert found.notes == [f"{folder}: 100 training images are not used, only those for testing"]
    resized = load_unlabelled(folder, 16, workers=0)
    assert resized.split[:][0].shape == (20, 16, 16, 3)


def test_nothing_to_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent: no such file or folder \(nor one of cifar10, "):
        load(tmp_path / "absent")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"no image found; not taken: 1 file without an image's suffix"):
        load(tmp_path)
    with pytest.raises(DataError, match="neither a folder, a zip"):
        load(tmp_path / "notes.txt")
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"no image can be decoded: .*a\.png \(not an image"):
        load(tmp_path)
