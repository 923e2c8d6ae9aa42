"""Entries of a data set besides images: nothing is left out in silence, and litter is not a class."""

import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import pytest

from coserve_training.data import Dataset, load_dataset
from coserve_training.errors import DataError


@pytest.fixture
def folder(image_folder: Path, tmp_path: Path) -> Path:
    """Copy three images of each class."""
    for file in sorted(image_folder.rglob("00[0-2].png")):
        target = tmp_path / "photos" / file.relative_to(image_folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return tmp_path / "photos"


def load(*paths: Path, skip_corrupt: bool = False) -> Dataset:
    return load_dataset(paths, 32, workers=0, skip_corrupt=skip_corrupt)


def count(dataset: Dataset) -> tuple[int, int]:
    assert dataset.train is not None
    assert dataset.test is not None
    return len(dataset.train), len(dataset.test)


def test_what_is_not_taken_is_counted_by_suffix_and_depth(folder: Path) -> None:
    for name in ("train/red/a.heif1", "train/red/b.HEIF1", "train/red/noname", "test/red/c.jpg?x=1"):
        (folder / name).write_bytes(b"")
    shutil.copy(folder / "train/red/000.png", folder / "cover.png")
    shutil.copy(folder / "train/red/000.png", folder / "train/loose.png")
    dataset = load(folder)
    assert dataset.notes == [
        f"{folder}: not taken: 4 files without an image's suffix (2 .heif1, 1 .jpg?x=1, 1 without a suffix); "
        "2 images outside class folders (1 at depth 0, 1 at depth 1)"
    ]
    assert count(dataset) == (9, 9)


def test_images_in_subfolders_of_a_class_are_taken_and_counted(folder: Path) -> None:
    (folder / "train/red/2024/may").mkdir(parents=True)
    shutil.copy(folder / "train/red/000.png", folder / "train/red/2024/may/1.png")
    dataset = load(folder)
    assert count(dataset) == (10, 9)
    assert dataset.labels == ["blue", "green", "red"]
    assert dataset.notes == [f"{folder}: 1 images lie in subfolders of class folders, and are taken"]


@pytest.mark.parametrize("suffix", ["jpe", "JFIF", "apng", "dib", "avif"])
def test_suffixes_that_people_have_are_taken(folder: Path, suffix: str) -> None:
    shutil.copy(folder / "train/red/000.png", folder / f"train/red/x.{suffix}")  # the content decides
    assert count(load(folder)) == (10, 9)


@pytest.mark.parametrize(
    "name",
    ["@eaDir", "#recycle", "lost+found", "$RECYCLE.BIN", "__MACOSX", ".ipynb_checkpoints", "__pycache__"],
)
def test_litter_is_no_class(folder: Path, name: str) -> None:
    for parent in (folder, folder / "train", folder / "train/red"):
        (parent / name).mkdir()
        shutil.copy(folder / "train/red/000.png", parent / name / "thumb.png")
    for file in ("Thumbs.db", "desktop.ini"):
        (folder / "train/red" / file).write_bytes(b"")
    dataset = load(folder)
    assert dataset.labels == ["blue", "green", "red"]
    assert count(dataset) == (9, 9)
    assert len(dataset.notes) == 1
    assert dataset.notes[0].startswith(f"{folder}: not taken: 5 hidden or system entries (3 {name}, ")


def test_links_that_lead_nowhere_are_named_and_skipped_if_asked(folder: Path) -> None:
    red = folder / "train/red"
    (red / "gone.png").symlink_to("nowhere")
    (red / "self").symlink_to("self")
    (red / "up").symlink_to(folder)
    (red / "readme.txt").symlink_to("nowhere")
    os.mkfifo(red / "pipe.png")
    with pytest.raises(DataError, match=r"^2 of 20 images cannot be decoded: ") as error:
        load(folder)
    assert f"{red}/gone.png (no such file or directory)" in str(error.value)
    assert f"{red}/self (too many levels of symbolic links)" in str(error.value)
    dataset = load(folder, skip_corrupt=True)
    assert count(dataset) == (9, 9)
    assert len(dataset.skipped) == 2
    assert len(dataset.notes) == 2
    assert dataset.notes[1].startswith("2 images cannot be decoded and are left out: ")
    for other in (
        "1 links to a folder above them",
        "1 pipes, sockets or devices",
        "1 entries that cannot be",
    ):
        assert other in dataset.notes[0]


def test_a_folder_that_cannot_be_read_spares_its_neighbours(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "train/red/more").mkdir()
    scan = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("/more"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"train/red/more \(permission denied\)"):
        load(folder)
    assert count(load(folder, skip_corrupt=True)) == (9, 9)
    only_test = load_dataset([folder], 32, workers=0, only=("test",))
    assert only_test.test is not None


def zip_entries(folder: Path, archive: Path, rename: dict[str, str], separator: str = "/") -> Path:
    with zipfile.ZipFile(archive, "w") as target:
        for file in sorted(folder.rglob("*.png")):
            name = str(file.relative_to(folder))
            for old, new in rename.items():
                name = name.replace(old, new)
            info = zipfile.ZipInfo(name.replace("/", separator))
            info.filename = name.replace("/", separator)
            target.writestr(info, file.read_bytes())
    return archive


def test_a_zip_from_windows(folder: Path, tmp_path: Path) -> None:
    dataset = load(zip_entries(folder, tmp_path / "photos.zip", {}, "\\"))
    assert dataset.labels == ["blue", "green", "red"]
    assert count(dataset) == (9, 9)


@pytest.mark.parametrize(("encoding", "label"), [("utf-8", "été"), ("cp437", "été"), ("extra", "été")])
def test_names_of_undeclared_encodings(folder: Path, tmp_path: Path, encoding: str, label: str) -> None:
    """UTF-8 without its flag (macOS), code page 437 (the default), and a name in an extra field."""
    raw = b"@t@" if encoding == "extra" else label.encode(encoding)
    archive = tmp_path / "photos.zip"
    placeholder = "x" * len(raw)
    with zipfile.ZipFile(archive, "w") as target:
        for file in sorted(folder.rglob("*.png")):
            name = str(file.relative_to(folder)).replace("red", placeholder)
            info = zipfile.ZipInfo(name)
            if encoding == "extra" and placeholder in name:
                unicode = name.replace(placeholder, label).encode()
                old = name.encode().replace(placeholder.encode(), b"\x82t\x82")
                field = struct.pack("<BI", 1, zlib.crc32(old)) + unicode
                info.extra = struct.pack("<HH", 0x7075, len(field)) + field
                raw = b"\x82t\x82"
            target.writestr(info, file.read_bytes())
    archive.write_bytes(archive.read_bytes().replace(placeholder.encode(), raw))
    dataset = load(archive)
    assert dataset.labels == ["blue", "green", label]
    assert count(dataset) == (9, 9)


def test_encrypted_entries_are_named_and_skipped_if_asked(folder: Path, tmp_path: Path) -> None:
    archive = zip_entries(folder, tmp_path / "photos.zip", {})
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        offset = opened.getinfo("train/red/001.png").header_offset
    content[offset + 6] |= 1
    directory = content.index(b"train/red/001.png", offset + 100) - 46
    content[directory + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match=r"^1 of 18 images cannot be decoded: .*001.png .*encrypted"):
        load(archive)
    assert count(load(archive, skip_corrupt=True)) == (8, 9)


def test_a_tar_is_refused_at_its_first_foreign_entry(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    extract = tarfile.TarFile.extractfile

    def spy(self: tarfile.TarFile, member: tarfile.TarInfo) -> object:
        read.append(member.name)
        return extract(self, member)

    monkeypatch.setattr(tarfile.TarFile, "extractfile", spy)
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.zip", "w:xz")):
        with tarfile.open(tmp_path / name, mode) as archive:  # type: ignore[call-overload]
            archive.add(folder, "photos")
        with pytest.raises(DataError, match="a tar archive without the official CIFAR files; unpack it"):
            load(tmp_path / name)
    assert read == []
