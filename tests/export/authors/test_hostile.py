"""Files that somebody packed again, damaged or forged: one clear line each, and never other weights."""

import json
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from coserve_export.authors import checkpoint
from coserve_export.authors.archive import looks_published, open_published
from coserve_export.authors.checkpoint import load_checkpoint
from coserve_export.authors.recognise import recognise
from coserve_export.errors import NetworkError

Save = Callable[..., Path]
KEY = "module.models.0.fc.bias"


def read(path: Path, **options: Any) -> list[dict[str, Tensor]]:
    with open_published(path) as found:
        loaded = load_checkpoint(found.path, found.name)
        recognise(loaded, found.settings, **options)
        return loaded.members


def pack(path: Path, **files: Path | str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content.read_bytes() if isinstance(content, Path) else content)
    return path


def test_a_checkpoint_that_was_unpacked_and_packed_again_has_the_same_weights(
    save: Save, tmp_path: Path
) -> None:
    path = save()
    expected = read(path)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "unpacked")
        names = archive.namelist()
    packed = pack(tmp_path / "again.pth.tar", **{name: tmp_path / "unpacked" / name for name in names})
    for member, other in zip(expected, read(packed), strict=True):
        assert member.keys() == other.keys()
        assert all(torch.equal(member[name], other[name]) for name in member)


def test_a_folder_or_zip_file_with_the_zip_file(save: Save, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    inner = pack(folder / "authors.zip", **{"model_best.pth.tar": save()})
    assert looks_published(folder)
    for path in (folder, pack(tmp_path / "outer.zip", **{"a/authors.zip": inner})):
        with pytest.raises(
            NetworkError, match=r"zip files instead of a checkpoint; give \S*authors\.zip its"
        ):
            read(path)


@pytest.mark.parametrize(("offset", "value", "message"), [
    (8, 1, r"cannot be unpacked: .* is encrypted"),
    (10, 97, "cannot be unpacked: That compression method is not supported"),
])  # fmt: skip
def test_a_zip_file_that_python_cannot_unpack(
    offset: int, value: int, message: str, save: Save, tmp_path: Path
) -> None:
    path = pack(tmp_path / "x.zip", **{"model_best.pth.tar": save()})
    content = bytearray(path.read_bytes())
    for start in (content.rfind(b"PK\x01\x02") + offset, offset - 2):
        content[start : start + 2] = struct.pack("<H", value)
    path.write_bytes(content)
    with pytest.raises(NetworkError, match=message):
        read(path)


def test_damaged_compression(save: Save, tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", **{"model_best.pth.tar": save()})
    content = bytearray(path.read_bytes())
    content[200:260] = b"\xff" * 60
    path.write_bytes(content)
    with pytest.raises(NetworkError, match=r"cannot be read: Error -3 .*; download it again"):
        read(path)


class Usage(NamedTuple):
    free: int


def test_a_checkpoint_that_does_not_fit_on_the_disk(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(1000))
    with pytest.raises(NetworkError, match=r"GB unpacked, but .* set TMPDIR"):
        read(pack(tmp_path / "x.zip", **{"model_best.pth.tar": save()}))


@pytest.mark.parametrize("limit", [10_000, 1 << 30])
def test_a_checkpoint_that_unpacks_to_far_more_than_its_size(
    limit: int, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "UNPACKED_BYTES", limit)
    path = save(padding=torch.zeros(5_000_000))
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "unpacked")
        names = archive.namelist()
    files = {name: tmp_path / "unpacked" / name for name in names}
    packed = pack(tmp_path / "again.pth.tar", **files)
    if limit > 10_000:
        assert read(packed)
        return
    with pytest.raises(NetworkError, match=r"MB unpack to 0\.0 GB, which trained weights never do"):
        read(packed)


def test_a_pointer_of_git_lfs(tmp_path: Path) -> None:
    path = tmp_path / "model_best.pth.tar"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(NetworkError, match=r"is a Git LFS pointer .* git lfs pull"):
        read(path)


def test_faults_of_others_are_not_those_of_the_file(save: Save) -> None:
    with pytest.raises(OSError, match="no space"), open_published(save()):
        raise OSError("no space")


@pytest.mark.parametrize(("settings", "message"), [
    ('{"split_factor": Infinity}', "split_factor must be a whole number, not inf"),
    ('{"split_factor": 7}', "holds 2 members, but its hparams_train.json says 7"),
    ('{"num_classes": 100}', "has 10 classes, but its hparams_train.json says 100"),
    ('{"crop_size": 1000000000}', "crop_size must be between 1 and 2048 pixels, not 1000000000"),
    ('{"arch": 5}', "its arch '5' is not the name of a network"),
    ("[1]", "holds no settings, but a list"),
    ("[" * 100_000, "is not JSON"),
])  # fmt: skip
def test_odd_settings(settings: str, message: str, save: Save, tmp_path: Path) -> None:
    files = {"model_best.pth.tar": save(), "hparams_train.json": settings}
    with pytest.raises(NetworkError, match=message):
        read(pack(tmp_path / "x.zip", **files))


def test_settings_in_another_file_need_an_arch(save: Save, tmp_path: Path) -> None:
    files = {"model_best.pth.tar": save(), "figures.json": json.dumps({"split_factor": 7})}
    assert len(read(pack(tmp_path / "x.zip", **files))) == 2


@pytest.mark.parametrize(("key", "tensor", "message"), [
    ("models.0.fc.bias", torch.zeros(10), "holds fc.bias of member 0 twice"),
    ("models.00.fc.bias", torch.zeros(10), "holds fc.bias of member 0 twice"),
    (KEY, torch.zeros(10, dtype=torch.complex64), "fc.bias is not a plain tensor of real numbers"),
    (KEY, torch.zeros(10).to_sparse(), "fc.bias is not a plain tensor of real numbers"),
    (KEY, torch.zeros(10, device="meta"), "fc.bias is not a plain tensor of real numbers"),
    ("extra", torch.zeros(1), "but here extra, …"),
])  # fmt: skip
def test_odd_weights(key: str, tensor: Tensor, message: str, save: Save) -> None:
    state = torch.load(save(), weights_only=False)["state_dict"]
    with pytest.raises(NetworkError, match=message):
        read(save(state_dict=state | {key: tensor}))


def test_odd_numbers_and_names(save: Save) -> None:
    assert read(save(epoch=float("inf")))
    with pytest.raises(NetworkError, match=r"its arch 'a\\nb' is not the name of a network"):
        read(save(arch="a\nb"))
    with pytest.raises(NetworkError, match="--image-size must be between 1 and 2048 pixels, not 100000"):
        read(save(), image_size=100_000)
