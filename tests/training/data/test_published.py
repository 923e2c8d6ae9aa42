"""SVHN and ImageNet in their published layouts, and damaged archives of CIFAR."""

import errno
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from coserve_training.data import load_dataset
from coserve_training.data.download import KNOWN, Remote
from coserve_training.data.unlabelled import load_unlabelled
from coserve_training.errors import DataError

WNIDS = {2: "n01440764", 1: "n02119789", 3: "n03995372"}
"""WordNet names by class number, which are not in the same order."""


MATLAB = Path(__file__).parent / "matlab"
"""Files written by scipy (write.py)."""


def svhn_file(file: Path) -> None:
    shutil.copy(MATLAB / file.name, file)


def test_svhn_labels_zero_as_ten(tmp_path: Path) -> None:
    svhn_file(tmp_path / "train_32x32.mat")
    svhn_file(tmp_path / "test_32x32.mat")
    dataset = load_dataset([tmp_path], 32)
    assert dataset.labels == list("0123456789")
    assert dataset.train is not None
    assert dataset.test is not None
    assert dataset.train.targets.tolist() == [*range(1, 10), 0] * 3
    row, column, channel = np.ogrid[:32, :32, :3]
    for index in (0, 7, 29):
        assert (dataset.train.images[index] == (row + 2 * column + 50 * channel + 3 * index) % 256).all()
    assert len(dataset.test) == 20


def test_the_extra_images_are_used_where_they_are_named(tmp_path: Path) -> None:
    for name in ("train", "test", "extra"):
        svhn_file(tmp_path / f"{name}_32x32.mat")
    for paths, count in (([tmp_path], 30), ([tmp_path, tmp_path / "extra_32x32.mat"], 80)):
        dataset = load_dataset(paths, 32)
        assert dataset.train is not None
        assert dataset.test is not None
        assert (len(dataset.train), len(dataset.test)) == (count, 20)


def test_svhn_by_name_comes_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSERVE_DATA", str(tmp_path))
    svhn_file(tmp_path / "train_32x32.mat")
    svhn_file(tmp_path / "test_32x32.mat")
    dataset = load_dataset([Path("svhn")], 32)
    assert dataset.train is not None
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.test)) == (30, 20)
    svhn_file(tmp_path / "extra_32x32.mat")
    train = load_dataset([Path("svhn"), Path("svhn_extra")], 32).train
    assert train is not None
    assert len(train) == 80


def test_a_folder_called_like_a_known_set_is_the_folder(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(image_folder, tmp_path / "svhn")
    monkeypatch.chdir(tmp_path)
    assert load_dataset([Path("svhn")], 32).labels == ["blue", "green", "red"]


LOADERS = [lambda path: load_dataset([path], 32), lambda path: load_unlabelled(path, 32)]


@pytest.mark.parametrize("load", LOADERS, ids=["labelled", "unlabelled"])
@pytest.mark.parametrize(("name", "reason"), [
    ("n" * 300, r"cannot be read \(File name too long\)"),
    ("a\0b", r"cannot be read \(embedded null"),
    ("loop", r"cannot be read \(Too many levels of symbolic links\)"),
    ("file/below", r"no such file or folder \(nor one of cifar10, "),
    ("missing", r"no such file or folder \(nor one of cifar10, "),
])  # fmt: skip
def test_paths_that_cannot_be_looked_up_are_named(
    load: Callable[[Path], object], name: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=reason):
        load(tmp_path / name)


def test_a_cache_that_cannot_be_searched_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COSERVE_DATA", "/" + "n" * 300)
    with pytest.raises(
        DataError, match=r"^/n{300}/cifar-10-python.tar.gz: cannot be read \(File name too long"
    ):
        load_dataset([Path("cifar10")], 32)


@pytest.mark.parametrize("load", LOADERS, ids=["labelled", "unlabelled"])
@pytest.mark.parametrize("file", ["data_batch_1", "train_32x32.mat", "batches.meta"])
def test_folders_that_may_be_listed_but_not_searched_are_named(
    load: Callable[[Path], object], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / file).touch()
    stat = Path.stat

    def refuse(path: Path, **options: Any) -> os.stat_result:
        if path.parent == tmp_path:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)  # root may search every folder
    with pytest.raises(DataError, match=r"(cannot be read|permission denied)"):
        load(tmp_path)


@pytest.mark.parametrize(("content", "complaint"), [
    (b"MATLAB", "not a MATLAB file, or damaged"),
    ("no_labels", "has no variable y"),
    ("text", "X and y must be arrays of numbers"),
    ("five_labels", r"X is uint8 \[32, 32, 3, 4\] for 5 labels"),
    ("label_zero", "y must hold labels from 1 to 10"),
])  # fmt: skip
def test_damaged_svhn_files(tmp_path: Path, content: bytes | str, complaint: str) -> None:
    file = tmp_path / "train_32x32.mat"
    file.write_bytes(content if isinstance(content, bytes) else (MATLAB / f"{content}.mat").read_bytes())
    with pytest.raises(DataError, match=complaint):
        load_dataset([file], 32)


def test_a_cut_svhn_file(tmp_path: Path) -> None:
    svhn_file(tmp_path / "train_32x32.mat")
    whole = (tmp_path / "train_32x32.mat").read_bytes()
    (tmp_path / "train_32x32.mat").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a MATLAB file, or damaged"):
        load_dataset([tmp_path], 32)


def test_published_files_and_folders_are_not_mixed(image_folder: Path, tmp_path: Path) -> None:
    svhn_file(tmp_path / "train_32x32.mat")
    with pytest.raises(DataError, match="cannot be combined"):
        load_dataset([tmp_path, image_folder], 32)


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    """Write a small ImageNet: three classes, with all validation images in one folder."""
    root = tmp_path / "imagenet"
    for wnid in WNIDS.values():
        (root / "train" / wnid).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (50, 40)).save(root / f"train/{wnid}/{wnid}_{index}.JPEG")
    (root / "val").mkdir()
    for index in range(1, 7):
        # The grey level is 40 × the class number.
        Image.new("RGB", (60, 50), (40 * ((index - 1) % 3 + 1),) * 3).save(
            root / f"val/ILSVRC2012_val_{index:08}.JPEG"
        )
    return root


def kaggle(imagenet: Path) -> Path:
    images = imagenet / "ILSVRC/Data/CLS-LOC"
    images.mkdir(parents=True)
    (imagenet / "train").rename(images / "train")
    (imagenet / "val").rename(images / "val")
    (images / "test").mkdir()
    Image.new("RGB", (60, 50)).save(images / "test/ILSVRC2012_test_00000001.JPEG")
    boxes = imagenet / "ILSVRC/Annotations/CLS-LOC/train/n01440764"
    boxes.mkdir(parents=True)
    (boxes / "n01440764_0.xml").write_text("<annotation/>")
    rows = [
        f"ILSVRC2012_val_{i:08},{WNIDS[(i - 1) % 3 + 1]} 1 2 30 40 {WNIDS[1]} 5 6 7 8 " for i in range(1, 7)
    ]
    (imagenet / "LOC_val_solution.csv").write_text(
        "\n".join(["ImageId,PredictionString", *rows[::-1]]) + "\n"
    )
    return imagenet


def development_kit(imagenet: Path) -> Path:
    data = imagenet / "ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n1\n2\n3\n")
    shutil.copy(MATLAB / "meta.mat", data)
    return imagenet


def class_folders(imagenet: Path) -> Path:
    for index, image in enumerate(sorted((imagenet / "val").iterdir())):
        folder = imagenet / "val" / WNIDS[index % 3 + 1]
        folder.mkdir(exist_ok=True)
        image.rename(folder / image.name)
    return imagenet


@pytest.mark.parametrize("layout", [kaggle, development_kit, class_folders])
@pytest.mark.parametrize("zipped", [False, True])
def test_imagenet_in_its_usual_layouts(imagenet: Path, layout: object, zipped: bool) -> None:
    assert callable(layout)
    path = layout(imagenet)
    if zipped:
        path = Path(shutil.make_archive(str(imagenet), "zip", imagenet))
    dataset = load_dataset([path], 32)
    assert dataset.labels == sorted(WNIDS.values())
    assert dataset.train is not None
    assert dataset.test is not None
    assert len(dataset.train) == 12
    assert len(dataset.test) == 6
    numbers = np.rint(dataset.test.images[:, 16, 16, 0] / 40).astype(int)
    assert [dataset.labels[t] for t in dataset.test.targets] == [WNIDS[n] for n in numbers.tolist()]


def test_the_development_kit_may_lie_elsewhere(imagenet: Path, tmp_path: Path) -> None:
    development_kit(imagenet)
    kit = (imagenet / "ILSVRC2012_devkit_t12").rename(tmp_path / "kit")
    test = load_dataset([imagenet, kit], 32).test
    assert test is not None
    assert len(test) == 6
    with pytest.raises(DataError, match="no image found, only files with the classes"):
        load_dataset([kit], 32)


def test_validation_images_of_unknown_class(imagenet: Path) -> None:
    with pytest.raises(
        DataError, match="holds 6 images outside class folders, and no file with their classes"
    ):
        load_dataset([imagenet], 32)
    development_kit(imagenet)
    extra = imagenet / "val/ILSVRC2012_val_00000007.JPEG"
    Image.new("RGB", (60, 50)).save(extra)
    with pytest.raises(DataError, match=r"ground_truth\.txt has no class for .*00000007"):
        load_dataset([imagenet], 32)


def test_damaged_truth(imagenet: Path) -> None:
    kaggle(imagenet)
    (imagenet / "LOC_val_solution.csv").write_text("something,else\n1,2\n")
    with pytest.raises(DataError, match=r"LOC_val_solution\.csv: damaged; expected rows of ImageId"):
        load_dataset([imagenet], 32)
    (imagenet / "LOC_val_solution.csv").unlink()
    development_kit(imagenet)
    truth = imagenet / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("1\n2\n9999\n")
    with pytest.raises(DataError, match="do not belong together, or are damaged"):
        load_dataset([imagenet], 32)


def test_damaged_cifar_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "batches.meta").write_bytes(np.random.default_rng(0).bytes(100_000))
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, folder.name)
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz: damaged \(MD5 "):
        load_dataset([archive], 32)
    monkeypatch.setitem(KNOWN, "cifar10", (Remote("another.tar.gz", "", ""),))
    with pytest.raises(DataError, match=r"batches.meta is damaged"):
        load_dataset([archive], 32)
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged archive"):
        load_dataset([archive], 32)


def test_images_of_published_files_are_resized_as_they_are_read(tmp_path: Path) -> None:
    svhn_file(tmp_path / "train_32x32.mat")
    kept = load_dataset([tmp_path], 48).train
    lazy = load_dataset([tmp_path], 48, cache_bytes=0).train
    assert kept is not None
    assert lazy is not None
    assert isinstance(kept.images, np.ndarray)
    assert kept.images.shape == (30, 48, 48, 3)
    assert not isinstance(lazy.images, np.ndarray)
    assert (lazy.images[:] == kept.images).all()


def test_a_zip_of_a_published_layout_needs_no_folder_entries(imagenet: Path, tmp_path: Path) -> None:
    class_folders(imagenet)
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for image in sorted(imagenet.rglob("*.JPEG")):
            file.write(image, image.relative_to(imagenet))
    test = load_dataset([archive], 32).test
    assert test is not None
    assert len(test) == 6
