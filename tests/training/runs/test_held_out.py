"""Held-out images stay held out, whatever happens to the files of a data set."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coserve_training.config import TrainConfig
from coserve_training.data import Identities, Known, Membership
from coserve_training.data.files import StoredFile
from coserve_training.data.identity import _place
from coserve_training.data.identity import identify as identify_files
from coserve_training.errors import DataError
from coserve_training.runs.evaluate import evaluate_run
from coserve_training.runs.images import read_known, write_known
from coserve_training.training_run import train
from tests.training.untrained_run import write_run

WHITE = Image.new("RGB", (32, 32), "white")


def silent(_: str) -> None:
    """Discard a line."""


@pytest.fixture(scope="module")
def trained(image_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Path]:
    """Train one epoch of two on data without a test split."""
    root = tmp_path_factory.mktemp("held_out")
    shutil.copytree(image_folder / "train", root / "data/train")
    config = TrainConfig(data=(str(root / "data"),), network="wide_resnet10_1", epochs=2, batch_size=30)

    def stop(line: str) -> None:
        if line.startswith("epoch 1/2"):
            raise MemoryError("as if killed")

    with pytest.raises(MemoryError):
        train(config, root / "run", report=stop)
    return config, root


@pytest.fixture
def begun(trained: tuple[TrainConfig, Path], tmp_path: Path) -> tuple[TrainConfig, Path]:
    """Copy the data and the run, for tests that change them."""
    config, root = trained
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    return replace(config, data=(str(copy / "data"),)), copy


def add_one_per_class(data: Path) -> None:
    for index, folder in enumerate(sorted((data / "train").iterdir())):
        Image.new("RGB", (32, 32), (index, 0, 0)).save(folder / "!first.png")


def rename_all(data: Path) -> None:
    for folder in sorted((data / "train").iterdir()):
        for number, file in enumerate(sorted(folder.iterdir())):
            file.rename(folder / f"x{(7 * number) % 40:02}.png")


def delete_some(data: Path) -> None:
    for folder in sorted((data / "train").iterdir()):
        for name in ("000", "001", "002"):
            (folder / f"{name}.png").unlink()


@pytest.mark.parametrize("change", [add_one_per_class, rename_all, delete_some])
def test_the_same_images_are_evaluated_after_a_change(
    begun: tuple[TrainConfig, Path], change: Callable[[Path], None]
) -> None:
    _, root = begun
    before = evaluate_run(root / "run", root / "data", report=silent)
    change(root / "data")
    after = evaluate_run(root / "run", root / "data", report=silent)
    assert after.images == before.images == 12
    assert after.ensemble.nll == pytest.approx(before.ensemble.nll, abs=1e-5)


def test_a_mended_image_stays_in_its_part(begun: tuple[TrainConfig, Path]) -> None:
    config, root = begun
    data = Path(config.data[0])
    run = root / "run"
    lines: list[str] = []
    WHITE.save(data / "train/red/009.png")  # held out
    WHITE.save(data / "train/red/010.png", dpi=(1, 1))  # trained on
    train(config, run, resume=True, report=lines.append)
    assert lines[0] == "no test split: 12 of 120 training images are held out"


def test_a_resumed_run_keeps_its_split_and_says_what_changed(begun: tuple[TrainConfig, Path]) -> None:
    config, root = begun
    before = read_known(root / "run")
    assert before is not None
    add_one_per_class(root / "data")
    (root / "data/train/red/000.png").unlink()
    (root / "data/train/red/009.png").unlink()
    lines: list[str] = []
    evaluation = train(config, root / "run", resume=True, report=lines.append)
    assert evaluation is not None
    assert evaluation.images == 11
    assert lines[:3] == [
        "3 images were added to train/, and are trained on from now on",
        "1 training images and 1 test images are gone",
        "no test split: 11 of 121 training images are held out",
    ]
    after = read_known(root / "run")
    assert after is not None
    assert set(after.tested.contents) == set(before.tested.contents)
    assert len(set(after.trained.contents) - set(before.trained.contents)) == 3


def test_other_images_of_the_same_names_are_new(begun: tuple[TrainConfig, Path]) -> None:
    """As when two cameras number their photographs alike."""
    config, root = begun
    before = read_known(root / "run")
    other = root / "other"
    for index, file in enumerate(sorted((root / "data").rglob("*.png"))):
        copy = other / file.relative_to(root / "data")
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (1, index % 256, index // 256)).save(copy)
    lines: list[str] = []
    both = replace(config, data=(*config.data, str(other)))
    train(both, root / "run", resume=True, report=lines.append)
    added = len(list(other.rglob("*.png")))
    assert f"{added} images were added to train/, and are trained on from now on" in "\n".join(lines)
    after = read_known(root / "run")
    assert len(after.tested) == len(before.tested)
    assert len(after.trained) == len(before.trained) + added


def test_a_run_that_starts_from_another_one_holds_out_images_of_its_own(
    image_folder: Path, tmp_path: Path
) -> None:
    """Other images may have the same names; the same images are still known."""
    trained, tested = (
        np.array([StoredFile(str(file)) for file in sorted((image_folder / split).rglob("*.png"))], object)
        for split in ("train", "test")
    )
    initial = write_run(tmp_path / "initial", image_folder, split=1)
    write_known(initial, Known(identify_files(trained), identify_files(tested)))
    for index, file in enumerate(trained):
        copy = tmp_path / "other" / Path(file.path).relative_to(image_folder)
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (index, 0, 0)).save(copy)
    config = TrainConfig(
        data=(str(tmp_path / "other"),),
        network="wide_resnet10_1",
        epochs=1,
        batch_size=60,
        image_size=16,
        initial=str(initial),
    )
    lines: list[str] = []
    train(config, tmp_path / "run", report=lines.append)
    assert lines[0] == "no test split: 12 of 120 training images are held out"
    shutil.copytree(image_folder / "train", tmp_path / "same/train")
    complaint = (
        "fewer than 10 training images that the initial run does not know, too few .*: blue; green; red$"
    )
    with pytest.raises(DataError, match=complaint):
        train(replace(config, data=(str(tmp_path / "same"),)), tmp_path / "refused", report=silent)


@pytest.mark.parametrize(("path", "place"), [
    ("/a/train/cat/1.png", "train/cat/1.png"),
    ("/a/train/cat/cam1/1.png", "train/cat/cam1/1.png"),
    ("/a/test/train/1.png", "test/train/1.png"),
    ("/train/x/cat/1.png", "train/x/cat/1.png"),
    ("/x/cat/1.png", "x/cat/1.png"),
    ("1.png", "1.png"),
])  # fmt: skip
def test_the_split_is_part_of_a_name(path: str, place: str) -> None:
    assert _place(path) == place


def test_images_that_were_trained_on_are_refused_by_name(begun: tuple[TrainConfig, Path]) -> None:
    config, root = begun
    shutil.copytree(root / "data/train", root / "other/test")
    for folder in (root / "other/test").iterdir():
        for file in sorted(folder.iterdir())[3:]:
            file.unlink()
    with pytest.raises(DataError, match=r"^9 of 9 test images were trained on: .*other/test/blue/000.png"):
        evaluate_run(root / "run", root / "other", report=silent)
    shutil.copytree(root / "other/test", root / "data/test")
    with pytest.raises(DataError, match=r"^9 of 9 test images were trained on"):
        train(config, root / "run", resume=True, report=silent)
    with pytest.raises(DataError, match=r"^9 of 9 test images were trained on"):
        train(replace(config, initial=str(root / "run")), root / "next", report=silent)


def test_a_copy_of_a_held_out_image_is_held_out_too(image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(image_folder / "train", tmp_path / "data/train")
    shutil.copy(tmp_path / "data/train/red/009.png", tmp_path / "data/train/blue/zz.png")
    config = TrainConfig(data=(str(tmp_path / "data"),), network="wide_resnet10_1", epochs=1, batch_size=30)
    evaluation = train(config, tmp_path / "run", report=silent)
    assert evaluation is not None
    assert evaluation.images == 13
    known = read_known(tmp_path / "run")
    assert known is not None
    assert not set(known.trained.contents) & set(known.tested.contents)


def test_test_images_that_count_twice_are_named(image_folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    run = write_run(tmp_path / "run", data)
    lines: list[str] = []
    evaluate_run(run, data, report=lines.append)
    assert lines == []
    shutil.copy(data / "test/red/000.png", data / "test/blue/zz.png")
    evaluate_run(run, data, report=lines.append)
    assert lines == [f"1 of 31 test images are copies of others, and count again: {data}/test/red/000.png"]
    lines.clear()
    evaluate_run(run, [image_folder, image_folder], report=lines.append)
    assert lines[0].startswith("30 of 60 test images are copies of others, and count again: ")


def test_a_moved_test_image_is_not_trained_on(image_folder: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(image_folder, tmp_path / "data"))
    config = TrainConfig(data=(str(data),), network="wide_resnet10_1", epochs=1, batch_size=30)
    train(config, tmp_path / "run", report=silent)
    (data / "test/red/000.png").rename(data / "train/red/moved.png")
    lines: list[str] = []
    evaluation = train(config, tmp_path / "run", resume=True, report=lines.append)
    assert lines[0] == "1 test images lie in train/ now; they are not trained on"
    assert evaluation is not None
    assert evaluation.images == 30


def test_an_older_run_without_a_record_says_so(image_folder: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", image_folder)
    (run / "images.npz").unlink()
    lines: list[str] = []
    evaluate_run(run, image_folder, report=lines.append)
    assert lines == [
        f"{run} has no record of its images (images.npz): an earlier version began it, so nothing shows "
        "whether test images were trained on"
    ]
    shutil.copytree(image_folder / "train", tmp_path / "data/train")
    old = write_run(tmp_path / "old", tmp_path / "data")
    (old / "images.npz").unlink()
    with pytest.raises(DataError, match="no record of what training held out"):
        evaluate_run(old, report=silent)
    config = TrainConfig(data=(str(tmp_path / "data"),), network="wide_resnet10_1", split=2, epochs=4)
    with pytest.raises(DataError, match="no record of what training held out"):
        train(config, old, resume=True, report=silent)


CONTENTS = st.lists(st.integers(1, 60), min_size=40, max_size=60)


def identify(files: npt.NDArray[Any]) -> Identities:
    return Identities(files.astype(np.uint64), np.zeros(len(files), np.uint64))


@settings(max_examples=60, deadline=None)
@given(
    start=st.lists(st.integers(1, 60), min_size=20, max_size=60, unique=True),
    later=st.lists(CONTENTS, min_size=1, max_size=3),
)
def test_nothing_ever_changes_sides(start: list[int], later: list[list[int]]) -> None:
    """Data are replaced again and again; no content is trained on once and held out another time."""
    known: Known | None = None
    trained: set[int] = set()
    tested: set[int] = set()
    for contents in [start, *later]:
        sources = {"train": (np.array(contents), np.zeros(len(contents), np.int64))}
        membership = Membership(known, resumed=known is not None)
        result, _ = membership.for_training(["a"], sources, identify)
        trained |= set(result["train"][0].tolist())
        tested |= set(result["test"][0].tolist() if "test" in result else [])
        assert sum(len(files) for files, _ in result.values()) == len(contents)
        assert not trained & tested
        known = membership.known
