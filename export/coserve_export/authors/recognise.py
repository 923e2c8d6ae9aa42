"""Recognising a checkpoint's network, split and data set."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from coserve_export.authors.checkpoint import Checkpoint, read_arch
from coserve_export.authors.datasets import DATASETS, SMALL
from coserve_export.authors.published import find_published
from coserve_export.errors import NetworkError
from coserve_training.errors import NetworkError as UnknownNetwork
from coserve_training.networks import member_network
from coserve_training.networks.config import NetworkConfig

OUR_NAMES = {
    "se_resnet50_B": "se_resnet50",
    "se_resnext101_64x4d": "se_resnext101_64x4d_narrow_stem",
    "se_resnext101_64x4d_B": "se_resnext101_64x4d",
    "pyramidnet164": "pyramidnet164_270",
}
"""Our names for the networks that the authors name differently."""
EFFICIENTNET_SIZES = (224, 240, 260, 300, 380, 456, 528, 600, 672)
"""Image sizes of EfficientNet b0 to b8, in pixels."""
PHOTOGRAPH = 224
LARGEST = 2048


@dataclass(frozen=True)
class Recognised:
    """What a checkpoint holds.

    Attributes:
        arch: the authors' name for the undivided network.
        network: our name for it.
        member: the architecture of each member.
        dataset: a key of `DATASETS`.
        image_size: height and width of its images in pixels.
        notes: what was assumed, for the user.
    """

    arch: str
    network: str
    member: NetworkConfig
    dataset: str
    image_size: int
    notes: Sequence[str]


def recognise(
    checkpoint: Checkpoint,
    settings: Mapping[str, Any],
    *,
    network: str | None = None,
    split: int | None = None,
    dataset: str | None = None,
    image_size: int | None = None,
) -> Recognised:
    """Recognise what a checkpoint holds, from its weights, its settings and the user's options.

    The weights decide. Settings and options fill in what weights do not show, and must agree with the rest.

    Raises:
        NetworkError: options, settings and weights contradict each other, or are not enough.
    """
    notes: list[str] = []
    name = checkpoint.name
    members = len(checkpoint.members)
    for source, claimed in (
        ("--split", split),
        ("its hparams_train.json", _integer(settings, "split_factor")),
    ):
        if claimed is not None and claimed != members:
            raise NetworkError(f"{name} holds {members} members, but {source} says {claimed}")
    classes = _integer(settings, "num_classes")
    if classes not in (None, checkpoint.classes):
        raise NetworkError(
            f"{name} has {checkpoint.classes} classes, but its hparams_train.json says {classes}"
        )
    arch = _choose_arch(checkpoint, settings, network)
    dataset = _choose_dataset(checkpoint, settings, dataset, notes)
    _refuse_variants(name, arch, settings)
    size = _choose_size(arch, members, dataset, settings, image_size, notes)
    ours = _our_name(arch, checkpoint, _padded_for(arch, size, settings))
    try:
        member = member_network(ours, members, image_size=size)
    except UnknownNetwork as error:
        raise NetworkError(f"{name} holds {arch}, which Coserve cannot build: {error}") from error
    return Recognised(arch, ours, member, dataset, size, notes)


def _integer(settings: Mapping[str, Any], key: str) -> int | None:
    value = settings.get(key)
    if value is None:
        return None
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise NetworkError(f"hparams_train.json: {key} must be a whole number, not {value!r}") from None


def _choose_arch(checkpoint: Checkpoint, settings: Mapping[str, Any], network: str | None) -> str:
    sources = {
        "--network": None if network is None else _their_name(network),
        "its arch": checkpoint.arch,
        "its hparams_train.json": read_arch(settings.get("arch"), "hparams_train.json"),
    }
    found = {source: arch for source, arch in sources.items() if arch is not None}
    if not found:
        raise NetworkError(f"{checkpoint.name} does not say which network it holds; name it with --network")
    if len(set(found.values())) > 1:
        claims = ", ".join(f"{source} says {arch}" for source, arch in found.items())
        raise NetworkError(f"{checkpoint.name}: {claims}; they must agree")
    return next(iter(found.values()))


def _their_name(network: str) -> str:
    """Return the authors' name; they write `efficientnetb7` for our `efficientnet_b7`."""
    return re.sub(r"^efficientnet_b(\d+)$", r"efficientnetb\1", network)


def _choose_dataset(
    checkpoint: Checkpoint, settings: Mapping[str, Any], dataset: str | None, notes: list[str]
) -> str:
    classes = checkpoint.classes
    known = [name for name, entry in DATASETS.items() if entry.classes == classes]
    if not known:
        sizes = ", ".join(sorted({str(entry.classes) for entry in DATASETS.values()}, key=int))
        raise NetworkError(f"{checkpoint.name} has {classes} classes; the authors' data sets have {sizes}")
    written = settings.get("dataset")
    for source, claimed in (("--dataset", dataset), ("its hparams_train.json", written)):
        if claimed is not None and claimed not in known:
            raise NetworkError(
                f"{checkpoint.name} has {classes} classes, so its data set is {' or '.join(known)}, "
                f"but {source} says {claimed}"
            )
    if dataset is not None and written is not None and dataset != written:
        raise NetworkError(f"{checkpoint.name}: --dataset says {dataset}, its hparams_train.json {written}")
    chosen = dataset or written
    if chosen is None and len(known) > 1:
        notes.append(
            f"the 10 classes are taken to be {known[0]}'s; if they are not, give --dataset {known[1]}"
        )
    return str(chosen or known[0])


def _choose_size(
    arch: str,
    members: int,
    dataset: str,
    settings: Mapping[str, Any],
    image_size: int | None,
    notes: list[str],
) -> int:
    size = image_size or _integer(settings, "crop_size")
    if size is not None:
        if not 1 <= size <= LARGEST:
            source = "--image-size" if image_size else "hparams_train.json: crop_size"
            raise NetworkError(f"{source} must be between 1 and {LARGEST} pixels, not {size}")
        return size
    if dataset != "imagenet":
        return SMALL
    entry = find_published(arch, members, dataset)
    size = (_usual_size(arch) or PHOTOGRAPH) if entry is None else entry.image_size
    notes.append(f"images are taken to be {size} x {size} pixels; for another size, give --image-size")
    return size


def _padded_for(arch: str, size: int, settings: Mapping[str, Any]) -> str:
    """Return the size that EfficientNet's paddings are computed for, if it differs from the images' size.

    The authors' code computes them for the size of its variant, unless `is_efficientnet_user_crop` is set.
    """
    usual = _usual_size(arch)
    if not settings or usual in (None, size) or _integer(settings, "is_efficientnet_user_crop"):
        return ""
    return str(usual)


def _usual_size(arch: str) -> int | None:
    """Return the size of an EfficientNet's photographs; None for other networks."""
    variant = re.fullmatch(r"efficientnetb(\d)", arch)
    if variant is None or int(variant[1]) >= len(EFFICIENTNET_SIZES):
        return None
    return EFFICIENTNET_SIZES[int(variant[1])]


def _our_name(arch: str, checkpoint: Checkpoint, padded_for: str) -> str:
    """Return our name for a network; the names of the weights tell the authors' implementations apart."""
    weights = checkpoint.members[0]
    if arch.startswith("efficientnetb"):
        suffix = f"_same_padding{padded_for}" if "_conv_stem.weight" in weights else ""
        return f"efficientnet_b{arch.removeprefix('efficientnetb')}{suffix}"
    if arch.startswith("densenet"):
        return f"{arch}_normed_stem" if "features.norm0.weight" in weights else arch
    return OUR_NAMES.get(arch, arch)


def _refuse_variants(name: str, arch: str, settings: Mapping[str, Any]) -> None:
    """Refuse settings that change what the weights compute without changing their shapes."""
    if _integer(settings, "output_stride") == 2 and "resn" in arch:
        raise NetworkError(f"{name} was trained with output_stride 2, which Coserve does not build")
    shake_drop = settings.get("densenet_p_shakedrop")
    if arch.startswith("densenet") and shake_drop not in (None, 0, 0.0):
        raise NetworkError(
            f"{name} was trained with ShakeDrop ({shake_drop}), which Coserve's DenseNet lacks"
        )
