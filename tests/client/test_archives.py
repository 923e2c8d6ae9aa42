import zipfile
from pathlib import Path

import pytest

from coserve_client import Image, InputError
from coserve_client.batching import split
from coserve_client.images import images_in_zip, read_image


def make_zip(path: Path, **contents: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def test_finds_images_and_reads_them_when_needed(tmp_path: Path) -> None:
    contents = {
        "b/2.JPG": b"two",
        "a.png": b"one",
        "notes.txt": b"",
        "folder.png/": b"",
        "__MACOSX/b/._2.JPG": b"?",
        "c\\3.gif": b"three",
    }
    path = make_zip(tmp_path / "photos.zip", **contents)
    files = images_in_zip(path)
    assert [str(file) for file in files] == [f"{path}/a.png", f"{path}/b/2.JPG", f"{path}/c/3.gif"]
    assert [read_image(file, 0) for file in files] == [
        Image(b"one", "a.png"),
        Image(b"two", "2.JPG"),
        Image(b"three", "3.gif"),
    ]


def test_decodes_names_without_the_flag_of_utf_8(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "photos.zip", **{"Bäume/größe.png": b"one"})
    content = path.read_bytes()
    for start, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.index(start) + flags
        content = content[:place] + bytes(2) + content[place + 2 :]
    path.write_bytes(content)
    (file,) = images_in_zip(path)
    assert str(file) == f"{path}/Bäume/größe.png"
    assert read_image(file, 0) == Image(b"one", "größe.png")


def test_passes_over_hidden_entries_and_those_of_systems(tmp_path: Path) -> None:
    names = ("a/1.png", "a/._1.png", ".b/2.png", "__MACOSX/a/1.png", "a/@eaDir/1.png/thumb.png")
    path = make_zip(tmp_path / "photos.zip", **dict.fromkeys(names, b"x"))
    assert [str(file) for file in images_in_zip(path)] == [f"{path}/a/1.png"]


def test_batches_zipped_images_by_their_size(tmp_path: Path) -> None:
    sizes = {"a.png": 9 * 2**20, "b.png": 6 * 2**20, "c.png": 2 * 2**20}
    path = make_zip(tmp_path / "photos.zip", **{name: bytes(size) for name, size in sizes.items()})
    assert [len(batch) for batch in split(images_in_zip(path), 16)] == [2, 1]


def test_names_what_cannot_be_read(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "photos.zip", **{"a.png": b"content"})
    # The first header's compression method and bytes: an unknown method makes the entry unreadable.
    content = bytearray(path.read_bytes())
    start = content.index(b"PK\x01\x02")
    content[start + 10] = 99
    path.write_bytes(content)
    (file,) = images_in_zip(path)
    with pytest.raises(InputError, match=r"cannot read .*photos\.zip/a\.png: That compression method"):
        read_image(file, 0)
    for broken, reason in ((b"PK", "File is not a zip file"), (None, "No such file")):
        other = tmp_path / "other.zip"
        if broken:
            other.write_bytes(broken)
        else:
            other.unlink()
        with pytest.raises(InputError, match=f"cannot read .*other.zip: {reason}"):
            images_in_zip(other)
