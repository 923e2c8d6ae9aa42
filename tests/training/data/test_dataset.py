import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coserve_training.data import load_dataset
from coserve_training.data.cifar import LAYOUTS
from coserve_training.errors import DataError


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    """Copy the images, for tests that damage them."""
    return Path(shutil.copytree(image_folder, tmp_path / "copy"))


def zipped(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, prefix + str(file.relative_to(folder)))
    return path


def test_a_folder_and_its_zip_hold_the_same(image_folder: Path, tmp_path: Path) -> None:
    from_folder = load_dataset([image_folder], 32)
    assert from_folder.labels == ["blue", "green", "red"]
    assert from_folder.train is not None
    assert from_folder.test is not None
    assert from_folder.train.images.shape == (120, 32, 32, 3)
    assert np.bincount(from_folder.test.targets).tolist() == [10, 10, 10]
    first = np.asarray(Image.open(image_folder / "train/blue/000.png"))
    assert (from_folder.train.images[0] == first).all()
    for prefix in ("", "some/root/"):
        from_zip = load_dataset([zipped(image_folder, tmp_path / "images.zip", prefix)], 32)
        assert from_zip.train is not None
        assert (from_zip.train.images == from_folder.train.images).all()


def test_splits_from_several_places_are_put_together(image_folder: Path, tmp_path: Path) -> None:
    parts = []
    for split in ("train", "test"):
        shutil.copytree(image_folder / split, tmp_path / split / split)
        parts.append(tmp_path / split)
    together = load_dataset(parts, 32)
    assert together.train is not None
    assert together.test is not None
    assert (len(together.train), len(together.test)) == (120, 30)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_other_names_of_the_test_split(folder: Path, name: str) -> None:
    (folder / "test").rename(folder / name)
    test = load_dataset([folder], 32).test
    assert test is not None
    assert len(test) == 30


def test_images_are_cut_to_size_at_the_shorter_side(folder: Path) -> None:
    stripes = Image.new("RGB", (90, 30), "black")
    stripes.paste("white", (30, 0, 60, 30))
    for file in (folder / "train").rglob("*.png"):
        stripes.save(file)
    train = load_dataset([folder], 16).train
    assert train is not None
    assert train.images.shape[1:] == (16, 16, 3)
    assert (train.images[0, :, 4:12] > 250).all()


def cifar_files(root: Path, name: str) -> Path:
    train, test, meta, label_key, names_key = LAYOUTS[name]
    classes = 10 if name.startswith("cifar-10-") else 100
    folder = root / name
    folder.mkdir()
    random = np.random.default_rng(0)
    for file in train + test:
        data = random.integers(0, 256, (20, 3072), dtype=np.uint8)
        content = {b"data": data, label_key.encode(): [i % classes for i in range(20)]}
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
    names = {names_key.encode(): [f"class{i}".encode() for i in range(classes)]}
    (folder / meta).write_bytes(pickle.dumps(names, protocol=2))
    return folder


@pytest.mark.parametrize(("name", "classes", "images"), [
    ("cifar-10-batches-py", 10, 100),
    ("cifar-100-python", 100, 20),
])  # fmt: skip
def test_official_cifar_files(tmp_path: Path, name: str, classes: int, images: int) -> None:
    folder = cifar_files(tmp_path, name)
    archive = tmp_path / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, name)
    for path in (folder, tmp_path, archive):
        dataset = load_dataset([path], 32)
        assert len(dataset.labels) == classes
        assert dataset.train is not None
        assert dataset.train.images.shape == (images, 32, 32, 3)
        with (folder / LAYOUTS[name][0][0]).open("rb") as file:
            raw = pickle.load(file, encoding="bytes")
        assert (dataset.train.images[0].transpose(2, 0, 1).ravel() == raw[b"data"][0]).all()


def test_a_cifar_file_cannot_run_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    folder = cifar_files(tmp_path, "cifar-10-batches-py")
    (folder / "data_batch_3").write_bytes(pickle.dumps({b"data": Evil()}))
    with pytest.raises(DataError, match="data_batch_3 is damaged"):
        load_dataset([folder], 32)
    assert not (tmp_path / "ran").exists()


def test_a_missing_cifar_file_is_named(tmp_path: Path) -> None:
    folder = cifar_files(tmp_path, "cifar-10-batches-py")
    (folder / "data_batch_2").unlink()
    with pytest.raises(DataError, match="data_batch_2 is missing"):
        load_dataset([folder], 32)


def test_a_class_missing_in_one_split_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "test/green")
    with pytest.raises(DataError, match="the test split has no image of class green"):
        load_dataset([folder], 32)


def test_every_unreadable_image_is_named(folder: Path) -> None:
    (folder / "train/red/005.png").write_bytes(b"not an image")
    whole = (folder / "test/blue/001.png").read_bytes()
    (folder / "test/blue/001.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"^2 of 150 images cannot be decoded") as error:
        load_dataset([folder], 32)
    assert "train/red/005.png" in str(error.value)
    assert "test/blue/001.png" in str(error.value)


def test_places_without_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        load_dataset([tmp_path / "absent"], 32)
    with pytest.raises(DataError, match="no image found; expected train/<class>/<image>"):
        load_dataset([tmp_path], 32)
    text = tmp_path / "text.txt"
    text.write_text("words")
    with pytest.raises(DataError, match="neither a folder, a zip, nor an official CIFAR or SVHN file"):
        load_dataset([text], 32)
    one = tmp_path / "train" / "only"
    one.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(one / "a.png")
    with pytest.raises(DataError, match=r"only one class found \(only\)"):
        load_dataset([tmp_path], 32)
