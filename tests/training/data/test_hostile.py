"""Image folders with faults: each fault is named, and none crashes the process."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coserve_training.data import load_dataset
from coserve_training.errors import DataError

CACHED = 1 << 30
LAZY = 0


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    """Copy the images, for tests that damage them."""
    return Path(shutil.copytree(image_folder, tmp_path / "copy"))


def photograph(file: Path, width: int, height: int) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3))
    image = Image.fromarray(pixels.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
    image.save(file)
    return file


def cut(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 2 // 3])


def damage(folder: Path) -> list[str]:
    """Add files that no decoder can read, and return their names."""
    (folder / "train/red/000.png").write_bytes(b"no image")
    (folder / "train/red/001.png").write_bytes(b"")
    cut(folder / "train/red/002.png")
    cut(photograph(folder / "train/red/cut.jpg", 300, 200))
    (folder / "train/red/header.jpg").write_bytes(b"\xff\xd8\xff\xe0 and then text\xff\xd9")
    (folder / "train/red/gone.png").symlink_to(folder / "nowhere.png")
    (folder / "train/red/self.png").symlink_to(folder / "train/red/self.png")
    Image.new("L", (1, 60_000)).save(folder / "train/red/thread.png")
    Image.fromarray(np.full((8, 8), 7, np.float32)).save(folder / "train/red/float.tiff")
    names = ["000.png", "001.png", "002.png", "cut.jpg", "header.jpg", "gone.png", "self.png", "thread.png"]
    return [f"train/red/{name}" for name in names]


@pytest.mark.parametrize("cache_bytes", [CACHED, LAZY])
def test_every_corrupt_file_is_named(folder: Path, cache_bytes: int) -> None:
    damaged = damage(folder)
    (folder / "train/red/float.tiff").unlink()
    with pytest.raises(DataError) as error:
        load_dataset([folder], 64, cache_bytes=cache_bytes)
    message = str(error.value)
    assert message.startswith(f"{len(damaged)} of 155 images cannot be decoded: ")
    assert message.isprintable()
    assert [name for name in damaged if f"{folder / name} (" not in message] == []


@pytest.mark.parametrize("cache_bytes", [CACHED, LAZY])
def test_corrupt_files_are_left_out_when_asked(folder: Path, cache_bytes: int) -> None:
    damaged = damage(folder)
    (folder / "train/red/float.tiff").unlink()
    dataset = load_dataset([folder], 64, skip_corrupt=True, cache_bytes=cache_bytes)
    assert dataset.train is not None
    assert len(dataset.skipped) == len(damaged)
    assert np.bincount(dataset.train.targets).tolist() == [40, 40, 37]
    images, targets = dataset.train[np.arange(len(dataset.train))]
    assert images.shape == (117, 64, 64, 3)
    assert (targets == dataset.train.targets).all()


def test_samples_without_a_defined_brightness_are_named(folder: Path) -> None:
    damage(folder)
    with pytest.raises(DataError, match=r"float.tiff \(floating-point samples"):
        load_dataset([folder], 64)


def test_more_faults_than_anyone_reads_are_counted(folder: Path) -> None:
    for file in sorted((folder / "train/red").iterdir())[:30]:
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"^30 of 150 images .*; and 10 more; replace them"):
        load_dataset([folder], 32)


def test_a_class_that_has_corrupt_images_alone_is_not_skipped(folder: Path) -> None:
    for file in (folder / "test/red").iterdir():
        file.write_bytes(b"no image")
    with pytest.raises(DataError, match="the test split has no image of class red"):
        load_dataset([folder], 32, skip_corrupt=True)


def test_an_empty_class_folder_is_named(folder: Path) -> None:
    (folder / "train/yellow").mkdir()
    with pytest.raises(DataError, match="no image in the folder of class yellow"):
        load_dataset([folder], 32)


def test_one_pixel_is_an_image(folder: Path) -> None:
    Image.new("RGB", (1, 1), (10, 200, 30)).save(folder / "train/green/000.png")
    train = load_dataset([folder], 32).train
    assert train is not None
    assert (train.images[40] == (10, 200, 30)).all()


def test_names_in_any_script(folder: Path) -> None:
    composed = "caf\u00e9 猫"
    decomposed = "cafe\u0301 猫"
    (folder / "train/red").rename(folder / "train" / composed)
    (folder / "test/red").rename(folder / "test" / decomposed)
    (folder / "train" / composed / "000.png").rename(folder / "train" / composed / "照片 ü.png")
    dataset = load_dataset([folder], 32)
    assert dataset.labels == ["blue", composed, "green"]
    assert dataset.train is not None
    assert dataset.test is not None
    assert np.bincount(dataset.train.targets).tolist() == [40, 40, 40]
    (folder / "train" / composed / "照片 ü.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"照片 ü\.png"):
        load_dataset([folder], 32)


def test_an_unprintable_name_is_escaped(folder: Path) -> None:
    shutil.copy(folder / "train/red/000.png", os.fsencode(folder / "train/red") + b"/\xff\n.png")
    load_dataset([folder], 32)
    Path(os.fsdecode(os.fsencode(folder / "train/red") + b"/\xff\n.png")).write_bytes(b"no image")
    with pytest.raises(DataError) as error:
        load_dataset([folder], 32)
    assert r"/\udcff\n.png" in str(error.value)
    assert str(error.value).isprintable()
    (folder / "train/red").rename(folder / "train/re\nd")
    with pytest.raises(DataError, match=r"class folder train/'re\\nd' has a name that cannot be printed"):
        load_dataset([folder], 32)


def test_links_are_followed_and_loops_are_not(folder: Path) -> None:
    (folder / "train/red/up").symlink_to(folder)
    (folder / "train/red/here").symlink_to(folder / "train/red")
    elsewhere = folder.parent / "elsewhere"
    (folder / "train/green").rename(elsewhere)
    (folder / "train/green").symlink_to(elsewhere)
    train = load_dataset([folder], 32).train
    assert train is not None
    assert np.bincount(train.targets).tolist() == [40, 40, 40]


def test_pipes_are_ignored(folder: Path) -> None:
    os.mkfifo(folder / "train/red/pipe.png")
    train = load_dataset([folder], 32).train
    assert train is not None
    assert len(train) == 120


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(folder: Path) -> None:
    (folder / "train/red").chmod(0)
    try:
        with pytest.raises(DataError, match=r"train/red: cannot be read \(Permission denied\)"):
            load_dataset([folder], 32)
    finally:
        (folder / "train/red").chmod(0o755)


def test_damaged_zips(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for image in sorted(folder.rglob("*.png")):
            file.write(image, image.relative_to(folder))
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged zip"):
        load_dataset([archive], 32)
    damaged = bytearray(whole)
    middle = whole.index((folder / "train/red/005.png").read_bytes())
    damaged[middle + 40 : middle + 60] = bytes(20)
    archive.write_bytes(damaged)
    with pytest.raises(DataError, match=r"^1 of 150 .*images.zip:train/red/005.png \(Bad CRC-32"):
        load_dataset([archive], 32)


MEASURED = """
import resource, sys
import numpy as np
from coserve_training.data.files import StoredFile
from coserve_training.config import TrainConfig
from coserve_training.data.lazy import LazyImages
from coserve_training.views import MemberViews

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

sources = np.array([StoredFile(sys.argv[1])] * 2, object)
before = peak()
assert LazyImages(sources, 224)[:].shape == (2, 224, 224, 3)
config = TrainConfig(data=("x",), network="resnet20", image_size=224, crop="resized")
views = MemberViews(config, range(2), (0, 0, 0))
assert LazyImages(sources, 224, views)[:].shape == (2, 2, 224, 224, 3)
print(peak() - before)
"""


def test_a_hundred_megapixels_are_decoded_in_little_memory(folder: Path) -> None:
    file = folder / "train/red/000.png"
    giant = file.with_name("giant.jpg")
    Image.linear_gradient("L").resize((10_000, 10_000)).save(giant)
    result = subprocess.run(
        [sys.executable, "-c", MEASURED, str(giant)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stderr == ""
    assert int(result.stdout) < 50, "MiB; whole, its pixels take 95 in grey and 380 in colour"
    train = load_dataset([folder], 32).train
    assert train is not None
    assert len(train) == 121
    column = train.images[-1][:, 16, 0].astype(int)
    assert (np.diff(column) > 0).all()
    assert column[0] < 10
    assert column[-1] > 245
