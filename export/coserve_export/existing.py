"""Making an ensemble of ONNX files that people already have."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from coserve_export.deployment import DEFAULT_DEPLOYMENT, Deployment
from coserve_export.ensemble import Description, Member, Preprocessing
from coserve_export.errors import DescriptionError, NetworkError
from coserve_export.labels import read_labels
from coserve_export.mean_graph import mean_graph, mean_inputs
from coserve_export.onnx_file import OnnxFile, read_onnx
from coserve_export.parity import Images, Logits, compare, require, weighted_mean
from coserve_export.report import MemberReport, Progress, Report
from coserve_export.repository import check_free, write_ensemble
from coserve_export.samples import read_samples
from coserve_export.session import Session
from coserve_export.versions import check_extends, write_version

if TYPE_CHECKING:
    from coserve_export.int8 import Int8

BATCH_RELATIVE_LIMIT = 0.05
"""Of the largest logit; dynamic quantisation takes one scale for a batch, and so depends on it a little."""
MEAN_RELATIVE_LIMIT = 1e-5
"""Of the largest logit; a few units in the last place of fp32."""
RANDOM_IMAGES = 4


def export_onnx(
    files: Sequence[Path],
    labels: Path,
    repository: Path,
    *,
    name: str,
    mean: Sequence[float],
    std: Sequence[float],
    resize_size: int | None = None,
    stretch: bool = False,
    interpolation: str = "bilinear",
    image_size: tuple[int, int] | None = None,
    output: str | None = None,
    weights: Sequence[float] | None = None,
    samples: Path | None = None,
    int8: "Int8 | None" = None,
    max_batch_size: int = 64,
    deployment: Deployment = DEFAULT_DEPLOYMENT,
    overwrite: bool = False,
    new_version: bool = False,
    progress: Progress = lambda _: None,
) -> Report:
    """Make an ensemble of networks that are ONNX files, each run at batch 1 and larger before it is written.

    Args:
        files: one per member; images `[N, 3, H, W]` float32 to logits `[N, C]` float32, N free.
        labels: a text file, one label per line by class index.
        repository: Triton's model repository; made where it does not exist.
        name: of the ensemble.
        mean, std: the networks' channel statistics, in units of pixel / 255.
        resize_size: the shorter side in pixels before the central crop; by default the input's longer side.
        stretch: resize to the input's size exactly instead, giving up proportions.
        interpolation: `"bilinear"` or `"bicubic"`.
        image_size: height and width, where the files leave them free.
        output: the logits' name, where the files have several outputs.
        weights: one positive number per member; by default all alike.
        samples: a folder of images to try the networks on; random ones by default.
        int8: quantise the networks; None keeps them as they are.
        max_batch_size: of every model.
        deployment: how Triton runs the members.
        overwrite: replace an ensemble of the same name.
        new_version: add a version to the ensemble of the same name, whose configuration stays.
        progress: called with what is being done.

    Raises:
        ExportError: where a check fails or the repository cannot be written; nothing is written then.
    """
    if stretch and resize_size is not None:
        raise DescriptionError("stretched images are not cropped: give either a resize size or stretch")
    networks = _read_all(files, output, progress)
    height, width = _common_size(networks, image_size)
    description = Description(
        name=name,
        num_members=len(networks),
        labels=read_labels(labels),
        preprocessing=Preprocessing(
            height=height,
            width=width,
            resize_size=None if stretch else resize_size or max(height, width),
            interpolation=interpolation,
            mean=list(mean),
            std=list(std),
        ),
        max_batch_size=max_batch_size,
        weights=weights,
        deployment=deployment,
    )
    if new_version:
        check_extends(repository, description)
    else:
        check_free(repository, name, overwrite)
    images = _images(description.preprocessing, samples)
    logits = []
    for network in networks:
        progress(f"running {network.path}")
        logits.append(_run_checked(network, images, len(description.labels)))
    _check_mean(logits, weights)

    members = [Member(network.model, network.input, network.output) for network in networks]
    reports = [
        MemberReport(member_name, len(member.model))
        for member_name, member in zip(description.member_names, members, strict=True)
    ]
    provenance = _provenance(networks, len(images))
    parity = loss = None
    if int8 is not None:
        from coserve_export.int8 import quantise

        quantised = quantise(members, description, int8, progress)
        members, parity, loss = quantised.members, quantised.parity, quantised.loss
        reports = quantised.reports(description.member_names)
        opset = max(network.opset for network in networks)
        provenance = quantised.provenance(provenance) | {"export": quantised.export | {"opset": opset}}

    progress(f"writing {name}")
    if new_version:
        written = write_version(repository, description, members, provenance)
    else:
        written = write_ensemble(repository, description, members, provenance, overwrite)
    return Report(name, written, repository, reports, len(description.labels), parity, loss)


def _read_all(files: Sequence[Path], output: str | None, progress: Progress) -> list[OnnxFile]:
    networks: list[OnnxFile] = []
    for file in files:
        progress(f"reading {file}")
        network = read_onnx(file, output)
        for other in networks:
            if other.model == network.model:
                raise NetworkError(f"{other.path} and {file} are the same network; which averages to itself")
        networks.append(network)
    return networks


def _common_size(networks: Sequence[OnnxFile], image_size: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width that suit every network; those given decide where a file leaves them free."""
    sizes: dict[tuple[int, int], str] = {} if image_size is None else {image_size: "the image size given"}
    for network in networks:
        height, width = network.height, network.width
        if image_size is not None:
            height, width = height or image_size[0], width or image_size[1]
        if height is None or width is None:
            raise NetworkError(f"{network.path} takes images of any size; choose one with --image-size")
        sizes.setdefault((height, width), str(network.path))
    if len(sizes) > 1:
        differing = ", ".join(f"{height}x{width} ({source})" for (height, width), source in sizes.items())
        raise NetworkError(f"members must take images of one size, not {differing}")
    return next(iter(sizes))


def _images(preprocessing: Preprocessing, folder: Path | None) -> Images:
    """Normalised images `[N, 3, H, W]` to try networks on."""
    if folder is not None:
        return preprocessing.normalise(read_samples(folder, preprocessing))
    shape = (RANDOM_IMAGES, preprocessing.height, preprocessing.width, 3)
    return preprocessing.normalise(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def _run_checked(network: OnnxFile, images: Images, num_classes: int) -> Logits:
    """Run all images at once; require finite logits `[N, num_classes]`, the same as for images alone."""
    subject = str(network.path)
    session = Session(network.model, subject)
    together = session.run(network.output, {network.input: images})
    shape = together.shape
    if len(shape) != 2 or shape[0] != len(images):
        raise NetworkError(f"{subject}: {len(images)} images give logits of shape {shape}, not [N, classes]")
    if shape[1] != num_classes:
        raise NetworkError(f"{subject}: gives {shape[1]} classes, but there are {num_classes} labels")
    alone = np.concatenate(
        [session.run(network.output, {network.input: image[None]}) for image in images[:2]]
    )
    parity = compare(together[:2], alone)
    limit = BATCH_RELATIVE_LIMIT * float(np.abs(together).max())
    require(parity, subject, limit, "those of the same image in a batch")
    require(compare(together, together), subject, limit)
    return together


def _check_mean(logits: Sequence[Logits], weights: Sequence[float] | None) -> None:
    """Require that the mean graph averages."""
    graph = mean_graph(len(logits), logits[0].shape[1], weights)
    onnx.checker.check_model(graph, full_check=True)
    session = Session(graph.SerializeToString(), "the ensemble's mean")
    mean = session.run("logits", dict(zip(mean_inputs(len(logits)), logits, strict=True)))
    limit = MEAN_RELATIVE_LIMIT * float(np.abs(logits).max())
    require(compare(weighted_mean(logits, weights), mean), session.subject, limit, "the members' mean")


def _provenance(networks: Sequence[OnnxFile], images: int) -> dict[str, object]:
    return {
        "member_networks": [network.path.stem for network in networks],
        "export": {"images": images, "opset": max(network.opset for network in networks)},
        "coserve_version": version("coserve"),
    }
