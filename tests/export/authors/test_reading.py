import hashlib
import json
import os
import pickle
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from coserve_export.authors.archive import looks_published, open_published
from coserve_export.authors.checkpoint import Checkpoint, load_checkpoint
from coserve_export.authors.datasets import DATASETS, labels_of
from coserve_export.authors.published import find_claim, published
from coserve_export.authors.recognise import Recognised, recognise
from coserve_export.errors import NetworkError

Save = Callable[..., Path]
SETTINGS = {"arch": "wide_resnet10_1", "split_factor": 2, "dataset": "svhn", "crop_size": 32}


def pack(path: Path, **files: bytes | str | Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            data = content.read_bytes() if isinstance(content, Path) else content
            archive.writestr(name, data)
    return path


def read(path: Path, **options: Any) -> tuple[Checkpoint, Recognised]:
    with open_published(path) as found:
        checkpoint = load_checkpoint(found.path, found.name)
        return checkpoint, recognise(checkpoint, found.settings, **options)


def test_a_zip_file_with_a_folder(save: Save, tmp_path: Path) -> None:
    checkpoint = save()
    digest = hashlib.md5(checkpoint.read_bytes()).hexdigest()
    files = {
        "some/model_best.pth.tar": checkpoint,
        "some/checkpoint_299.pth.tar": checkpoint,
        "some/hparams_train.json": json.dumps(SETTINGS),
        "some/md5.txt": f"{digest}  ./model_best.pth.tar\n",
        "some/val/events.out.tfevents.1": b"\x18\x00\x00",
        "__MACOSX/some/._model_best.pth.tar": b"PK\x03\x04",
    }
    path = pack(tmp_path / "renamed.bin", **files)
    assert looks_published(path)
    loaded, recognised = read(path)
    assert len(loaded.members) == 2
    assert loaded.epochs == 300
    assert loaded.top1 == 0.815
    assert (recognised.network, str(recognised.member)) == ("wide_resnet10_1", "wide_resnet10_1")
    assert (recognised.dataset, recognised.image_size, list(recognised.notes)) == ("svhn", 32, [])
    files["some/md5.txt"] = f"{'0' * 32} *model_best.pth.tar\n"
    with pytest.raises(
        NetworkError, match=rf"is damaged: its MD5 sum is {digest}, but the file beside it says 0"
    ):
        read(pack(tmp_path / "other.zip", **files))


def test_an_unpacked_folder_and_the_file_in_it(save: Save, tmp_path: Path) -> None:
    folder = tmp_path / "unpacked"
    folder.mkdir()
    file = save().rename(folder / "model_best.pth.tar")
    (folder / "hparams_train.json").write_text(json.dumps(SETTINGS))
    assert looks_published(folder)
    for path in (folder, file):
        assert read(path)[1].dataset == "svhn"
    (folder / "model_best.pth.tar.md5").write_text("0" * 32)
    for path in (folder, file):
        with pytest.raises(NetworkError, match="is damaged"):
            read(path)


def test_a_file_of_torch_before_1_6(save: Save) -> None:
    path = save()
    saved = torch.load(path, weights_only=False)
    torch.save(saved, path, _use_new_zipfile_serialization=False)
    assert path.read_bytes()[:1] == b"\x80"
    loaded, _ = read(path)
    assert torch.equal(loaded.members[1]["fc.weight"], saved["state_dict"]["module.models.1.fc.weight"])


def test_what_cannot_be_opened_is_not_taken_for_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.zip")
        assert not looks_published(Path("socket.zip"))


def test_a_file_of_its_own_tells_what_it_can(save: Save) -> None:
    _, recognised = read(save())
    assert recognised.dataset == "cifar10"
    assert recognised.notes == [
        "the 10 classes are taken to be cifar10's; if they are not, give --dataset svhn"
    ]
    assert read(save(), dataset="svhn")[1].notes == []
    assert read(save(arch=None), network="wide_resnet10_1", split=2)[1].arch == "wide_resnet10_1"
    state = torch.load(save(), weights_only=False)["state_dict"]
    torch.save({key.removeprefix("module."): tensor for key, tensor in state.items()}, save())
    assert read(save(), network="wide_resnet10_1")[1].network == "wide_resnet10_1"


@pytest.mark.parametrize(("options", "settings", "message"), [
    ({"split": 4}, {}, "holds 2 members, but --split says 4"),
    ({}, {"split_factor": 1}, "holds 2 members, but its hparams_train.json says 1"),
    ({}, {"split_factor": "two"}, "hparams_train.json: split_factor must be a whole number, not 'two'"),
    ({"network": "resnet50"}, {}, "--network says resnet50, its arch says wide_resnet10_1.*; they must"),
    ({}, {"arch": "resnet50"}, "its arch says wide_resnet10_1, its hparams_train.json says resnet50"),
    ({"dataset": "cifar100"}, {}, "has 10 classes, so its data set is cifar10 or svhn, but --data"),
    ({"dataset": "cifar10"}, {}, "--dataset says cifar10, its hparams_train.json svhn"),
    ({}, {"dataset": "imagenet"}, "but its hparams_train.json says imagenet"),
    ({}, {"output_stride": 2}, "was trained with output_stride 2"),
])  # fmt: skip
def test_contradictions(
    options: dict[str, Any], settings: dict[str, Any], message: str, save: Save, tmp_path: Path
) -> None:
    files = {"model_best.pth.tar": save(), "hparams_train.json": json.dumps(SETTINGS | settings)}
    with pytest.raises(NetworkError, match=message):
        read(pack(tmp_path / "x.zip", **files), **options)


class Command:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("run",)


def test_code_is_not_run(save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NetworkError, match=r"was not loaded: it asks for posix\.mkdir"):
        read(save(extra=Command()))
    for protocol in (2, 4):
        (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"state_dict": Command()}, protocol))
        with pytest.raises(NetworkError, match=r"was not loaded|is not a checkpoint") as raised:
            read(tmp_path / "plain.pkl")
        assert "\n" not in str(raised.value)
    with pytest.raises(NetworkError, match=r"it asks for torch\.nn\.modules\.linear\.Linear"):
        read(save(model=torch.nn.Linear(1, 1)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("name", "content", "message"), [
    ("x.zip", b"", "is neither a zip file nor a checkpoint of torch.save"),
    ("x.zip", b"\n<!DOCTYPE html><html>", "is a web page, not a checkpoint"),
    ("x.onnx", b"<html><body>", "is a web page, not a checkpoint"),
    ("x.zip", b"PK\x03\x04 and no end", "is cut off or damaged: a zip file without its end"),
    ("x.pth", b"\x80\x02}q\x00", "is damaged or is not a checkpoint"),
])  # fmt: skip
def test_other_files(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert looks_published(path)
    with pytest.raises(NetworkError, match=message):
        read(path)


def test_other_contents(save: Save, tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"holds no checkpoint of torch\.save; it holds a\.txt"):
        read(pack(tmp_path / "x.zip", **{"a.txt": "x"}))
    both = {"a.pth": save(), "b.pth": save()}
    with pytest.raises(NetworkError, match=r"holds several checkpoints; .* one of a\.pth, b\.pth"):
        read(pack(tmp_path / "x.zip", **both))
    with pytest.raises(NetworkError, match=r"hparams_train\.json beside the checkpoint is not JSON"):
        read(pack(tmp_path / "x.zip", **{"a.pth": save(), "hparams_train.json": "{"}))
    weights = {"conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)}
    with pytest.raises(NetworkError, match=r"named models\.0\.…, but here conv1\.weight, fc\.weight"):
        read(save(state_dict=weights))
    torch.save([1], tmp_path / "list.pth")
    with pytest.raises(NetworkError, match="holds a list"):
        read(tmp_path / "list.pth")
    with pytest.raises(NetworkError, match="does not say which network it holds"):
        read(save(arch=None))
    with pytest.raises(NetworkError, match="holds vgg16, which Coserve cannot build: unknown network"):
        read(save(arch="vgg16"))
    state = torch.load(save(), weights_only=False)["state_dict"]
    with pytest.raises(NetworkError, match=r"has the members \[1\]; some are missing"):
        read(save(state_dict={key: tensor for key, tensor in state.items() if ".1." in key[:16]}))


def test_a_damaged_byte(save: Save, tmp_path: Path) -> None:
    path = pack(tmp_path / "x.zip", **{"model_best.pth.tar": save()})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(NetworkError, match="cannot be read: Bad CRC-32"):
        read(path)


@pytest.mark.parametrize(("arch", "split", "network", "size"), [
    ("efficientnetb7", 2, "efficientnet_b7", 320),
    ("efficientnetb3", 1, "efficientnet_b3", 300),
    ("se_resnext101_64x4d", 2, "se_resnext101_64x4d_narrow_stem", 416),
    ("se_resnext101_64x4d_B", 2, "se_resnext101_64x4d", 320),
    ("resnet50", 1, "resnet50", 224),
])  # fmt: skip
def test_photographs_have_the_published_size(arch: str, split: int, network: str, size: int) -> None:
    members = [{"fc.weight": torch.empty(1000, 8, device="meta")}] * split
    recognised = recognise(Checkpoint("it", members, arch, None, None), {})
    assert (recognised.network, recognised.image_size, recognised.dataset) == (network, size, "imagenet")
    assert recognised.notes == [
        f"images are taken to be {size} x {size} pixels; for another size, give --image-size"
    ]


def test_paddings_of_efficientnet_are_for_its_variant_unless_the_crop_is_the_user_s() -> None:
    weights = {"_fc.weight": torch.empty(1000, 8), "_conv_stem.weight": torch.empty(1)}
    checkpoint = Checkpoint("it", [weights], "efficientnetb7", None, None)
    for settings, network in (
        ({"crop_size": 320}, "efficientnet_b7_same_padding600"),
        ({"crop_size": 320, "is_efficientnet_user_crop": 1}, "efficientnet_b7_same_padding"),
        ({"crop_size": 600}, "efficientnet_b7_same_padding"),
    ):
        assert recognise(checkpoint, settings).network == network


@pytest.mark.parametrize("top1", [None, 0.979, 0.985])
def test_a_published_classifier_has_the_authors_accuracy(top1: float | None) -> None:
    claim = find_claim("wide_resnet28_10", 2, "cifar10", top1)
    assert claim == (0.9819, ["the authors state a top-1 accuracy of 98.19%"])


def test_another_training_does_not_have_the_authors_accuracy() -> None:
    claimed, (note,) = find_claim("wide_resnet28_10", 2, "cifar10", 0.93)
    assert claimed is None
    assert "98.19%, but this file 93.00%" in note


def test_a_network_that_is_not_published_has_no_claim() -> None:
    assert find_claim("wide_resnet10_1", 2, "cifar10", 0.93) == (None, [])


def test_published_classifiers_are_those_of_the_paper() -> None:
    assert len(published()) == len({entry.url for entry in published()}) == 38
    for dataset, best in (("cifar10", 0.9871), ("cifar100", 0.8946), ("imagenet", 0.836)):
        assert max(entry.top1 for entry in published() if entry.dataset == dataset) == best
    for entry in published():
        weights = {"fc.weight": torch.empty(DATASETS[entry.dataset].classes, 1)}
        checkpoint = Checkpoint("it", [weights] * entry.split, entry.arch, None, None)
        recognised = recognise(checkpoint, {})
        assert (recognised.dataset, recognised.image_size) == (entry.dataset, entry.image_size)


def test_labels() -> None:
    for name, dataset in DATASETS.items():
        assert len(set(labels_of(name))) == dataset.classes
    assert labels_of("cifar100")[::33] == ("apple", "forest", "raccoon", "worm")
    assert list(labels_of("cifar100")) == sorted(labels_of("cifar100"))
    assert labels_of("imagenet")[::999] == ("n01440764", "n15075141")
    assert np.unique(labels_of("imagenet")).tolist() == list(labels_of("imagenet"))
