import os
from pathlib import Path

import pytest

from coserve_client import Image, InputError
from coserve_client.collection import Collection, class_folders


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    ("labels", "folders"),
    [
        (["cat", "T-shirt/top", "naïve plane"], ["cat", "T-shirt_top", "naïve plane"]),
        (["crane", "owl", "crane"], ["crane (class 0)", "owl", "crane (class 2)"]),
        (
            ["..", ".hidden", "", "a:b", "a_b"],
            ["(class 0)", "hidden", "(class 2)", "a_b (class 3)", "a_b (class 4)"],
        ),
    ],
)
def test_class_folders(labels: list[str], folders: list[str]) -> None:
    assert class_folders(labels) == folders


def test_adds_each_image_once_and_overwrites_nothing(tmp_path: Path) -> None:
    labelled = tmp_path / "train/dog/1.PNG"
    labelled.parent.mkdir(parents=True)
    labelled.write_bytes(b"known")
    collection = Collection(tmp_path)
    added = [
        collection.add(Image(data, name), label)
        for data, name, label in (
            (b"known", "x.png", "cat"),
            (b"first", "1.png", "cat"),
            (b"other", "deep/1.png", "dog"),
            (b"first", "2.png", "dog"),
            (b"third", ".3.png", "cat"),
            (b"fourth", "...", "cat"),
        )
    ]
    assert [(place.as_posix(), new) for place, new in added] == [
        ("train/dog/1.PNG", False),
        ("unlabelled/cat/1-2.png", True),
        ("unlabelled/dog/1-3.png", True),
        ("unlabelled/cat/1-2.png", False),
        ("unlabelled/cat/3.png", True),
        ("unlabelled/cat/image", True),
    ]
    assert content(tmp_path) == {
        "train/dog/1.PNG": b"known",
        "unlabelled/cat/1-2.png": b"first",
        "unlabelled/dog/1-3.png": b"other",
        "unlabelled/cat/3.png": b"third",
        "unlabelled/cat/image": b"fourth",
    }


def test_files_beside_the_images_get_numbers(tmp_path: Path) -> None:
    for number in (1, 2):
        Collection(tmp_path).write("table.csv", b"%d" % number)
    assert content(tmp_path) == {"table.csv": b"1", "table-2.csv": b"2"}


def test_an_interrupted_copy_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[:2])
        raise KeyboardInterrupt

    collection = Collection(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", interrupt)
        with pytest.raises(KeyboardInterrupt):
            collection.add(Image(b"image", "a.png"), "cat")
    assert content(tmp_path) == {}


def test_what_a_killed_run_was_writing_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / ".0f.part").write_bytes(b"image")
    place, new = Collection(tmp_path).add(Image(b"image", "a.png"), "cat")
    assert (place.as_posix(), new) == ("unlabelled/cat/a.png", True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_access_is_refused_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match=f"cannot keep images in {tmp_path}: Permission denied"):
        Collection(tmp_path)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match=r"cannot keep images in .*/out: File exists"):
        Collection(tmp_path / "out")
