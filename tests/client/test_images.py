import errno
import gzip
import io
import os
import tempfile
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from coserve_client import Image, InputError
from coserve_client.archives import LITTER
from coserve_client.batching import split
from coserve_client.images import images_in, read_image, read_images


def test_keeps_order_and_names_of_every_kind_of_source(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "cat.jpg"
    file.parent.mkdir()
    file.write_bytes(b"cat")
    with file.open("rb") as opened:
        images = read_images([file, b"raw", str(file), opened, io.BytesIO(b"memory"), Image(b"x", "dog.png")])

    assert [(image.filename, image.data) for image in images] == [
        ("cat.jpg", b"cat"),
        ("image_1", b"raw"),
        ("cat.jpg", b"cat"),
        ("cat.jpg", b"cat"),
        ("image_4", b"memory"),
        ("dog.png", b"x"),
    ]


def test_accepts_one_image_without_a_list() -> None:
    with io.BytesIO(b"x") as opened:
        assert read_images(opened) == read_images(b"x") == read_images([b"x"])
    assert read_images(bytearray(b"x")) == read_images(memoryview(b"x")) == read_images(b"x")
    assert type(read_images(Image(bytearray(b"x"), "a.png"))[0].data) is bytes


def test_accepts_a_generator_and_unnamed_files() -> None:
    with tempfile.TemporaryFile() as opened:  # its `name` is a file descriptor
        opened.write(b"y")
        opened.seek(0)
        assert [i.filename for i in read_images(s for s in (b"x", opened))] == ["image_0", "image_1"]


def test_names_the_file_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jpg: No such file") as caught:
        read_images(tmp_path / "none.jpg")
    assert isinstance(caught.value.__cause__, FileNotFoundError)

    with pytest.raises(InputError, match="Is a directory"):
        read_images(tmp_path)

    with pytest.raises(InputError, match="null"):
        read_images("a\0b")

    with pytest.raises(InputError, match="the path of an image must not be empty"):
        read_images("")

    file = tmp_path / "a.jpg"
    file.write_bytes(b"x")
    with file.open("rb") as closed:
        pass
    with pytest.raises(InputError, match=r"a\.jpg: .*closed"):
        read_images(closed)


class Waiting(io.RawIOBase):
    """A file that would block."""

    def read(self, size: int = -1) -> None:
        return None


def test_requires_binary_files_and_at_least_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="binary mode"):
        read_images(io.StringIO("text"))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"image_0: read\(\) returns NoneType, not bytes"):
        read_images(Waiting())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="opened in binary mode or an Image, not NoneType"):
        read_images([None])  # type: ignore[list-item]
    with pytest.raises(InputError, match="an image or an iterable of images, not NoneType"):
        read_images(None)  # type: ignore[arg-type]
    pixels: Any = PIL.Image.new("RGB", (1, 1))
    with pytest.raises(InputError, match=r"an image or an iterable of images, not PIL\.Image\.Image"):
        read_images(pixels)
    with pytest.raises(InputError, match=r"in binary mode or an Image, not PIL\.Image\.Image"):
        read_images([pixels])
    with pytest.raises(InputError, match="no image given"):
        read_images([])


class Storage:
    """A file in a storage service whose library has errors of its own."""

    def read(self) -> bytes:
        raise EOFError("the connection broke")


def released() -> memoryview:
    view = memoryview(b"x")
    view.release()
    return view


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Storage(), "cannot read image_0: the connection broke"),
        (gzip.GzipFile(fileobj=io.BytesIO(gzip.compress(b"x" * 99)[:-9])), "cannot read .*end-of-stream"),
        (released(), "cannot read an image in memory: .*released"),
        (Image("a.jpg", "a.jpg"), "the data of an Image must be bytes, not str"),  # type: ignore[arg-type]
        (Image(5, "a.jpg"), "the data of an Image must be bytes, not int"),  # type: ignore[arg-type]
        (Image(b"x", Path("a.jpg")), "filename of an Image must be a string"),  # type: ignore[arg-type]
        (Image(b"x", None), "filename of an Image must be a string, not NoneType"),  # type: ignore[arg-type]
    ],
)
def test_whatever_keeps_an_image_from_being_read_concerns_that_image(image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_images([image])
    assert list(split([image], 9)) == [[image]]


@pytest.mark.parametrize("folder", [None, 5, b"photos", ["photos"]])
def test_a_folder_is_a_path(folder: Any) -> None:
    with pytest.raises(InputError, match=f"a folder must be a path, not {type(folder).__name__}"):
        images_in(folder)


def test_entries_of_a_folder_may_have_paths_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jpg").write_bytes(b"x")
    (folder,) = os.scandir(os.fsencode(tmp_path))
    (file,) = os.scandir(folder)
    assert read_images([file]) == [Image(b"x", "a.jpg")]  # type: ignore[list-item]
    assert list(images_in(folder)) == [tmp_path / "folder" / "a.jpg"]  # type: ignore[arg-type]


def test_an_empty_name_is_no_name() -> None:
    opened = io.BytesIO(b"y")
    opened.name = ""  # type: ignore[misc]
    images = read_images([Image(b"x", ""), opened])
    assert [image.filename for image in images] == ["image_0", "image_1"]


def test_makes_any_file_name_encodable(tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg"))
    file.write_bytes(b"x")
    assert read_images(file)[0].filename == "\N{REPLACEMENT CHARACTER}.jpg"
    names = ["ü.jpg", "😀.jpg", "\udcff.jpg", "\ud800.jpg"]
    assert [image.filename for image in read_images([Image(b"x", name) for name in names])] == [
        "ü.jpg",
        "😀.jpg",
        *["\N{REPLACEMENT CHARACTER}.jpg"] * 2,
    ]


def test_links_are_followed_except_back_to_a_folder_above(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for name in ("folder/sub/a.png", "other/b.png"):
        (tmp_path / name).write_bytes(b"x")
    (folder / "linked").symlink_to(tmp_path / "other")
    (tmp_path / "other/back").symlink_to(folder)
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "file.png").symlink_to(tmp_path / "other/b.png")
    assert list(images_in(folder)) == [
        folder / name for name in ("file.png", "linked/b.png", "loop.png", "sub/a.png")
    ]


def test_a_subfolder_that_cannot_be_listed_is_an_entry_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "locked/b.png", "z/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    # Root may read everything.
    monkeypatch.setattr(os, "scandir", refuse)
    found = list(images_in(tmp_path))
    assert found == [tmp_path / name for name in ("a.png", "locked", "z/c.png")]
    with pytest.raises(InputError, match=r"cannot read .*locked"):
        read_image(found[1], 0)
    with pytest.raises(InputError, match=r"cannot read .*locked: Permission denied"):
        images_in(tmp_path / "locked")


def test_passes_over_what_training_does(tmp_path: Path) -> None:
    for name in ("@eaDir/a.png", "._a.png", "a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert list(images_in(tmp_path)) == [tmp_path / "a.png"]


def test_systems_entries_are_those_that_training_passes_over() -> None:
    assert LITTER == pytest.importorskip("coserve_training.data.passed_over").LITTER
