"""Making an ensemble of existing ONNX files."""

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx

from coserve_export.compatibility import get_opset, lower_opset
from coserve_export.deployment import DEFAULT_DEPLOYMENT, Deployment
from coserve_export.ensemble import Description, Member, Preprocessing, note_repeated_labels
from coserve_export.errors import DescriptionError, NetworkError
from coserve_export.labels import read_labels
from coserve_export.logits import run_network
from coserve_export.mean_graph import mean_graph, mean_inputs
from coserve_export.onnx_file import OnnxFile, read_onnx, with_two_logits
from coserve_export.parity import (
    FP32_RELATIVE_LIMIT,
    Logits,
    compare_logits,
    require_parity,
    weighted_mean,
)
from coserve_export.report import Progress, Report, report_members
from coserve_export.repository import check_can_write, write_ensemble
from coserve_export.samples import Samples, make_samples
from coserve_export.session import Session
from coserve_export.versions import check_can_extend, write_version

if TYPE_CHECKING:
    from coserve_export.int8 import Int8


def export_onnx(
    files: Sequence[Path | str],
    repository: Path | str,
    *,
    name: str,
    labels: Sequence[str] | Path | str,
    mean: Sequence[float],
    std: Sequence[float],
    resize_size: int | None = None,
    stretch: bool = False,
    interpolation: str = "bilinear",
    image_size: int | tuple[int, int] | None = None,
    output: str | None = None,
    weights: Sequence[float] | None = None,
    samples: Path | str | None = None,
    int8: "Int8 | None" = None,
    max_batch_size: int = 64,
    deployment: Deployment = DEFAULT_DEPLOYMENT,
    overwrite: bool = False,
    new_version: bool = False,
    progress: Progress = lambda _: None,
) -> Report:
    """Write an ensemble of existing ONNX files into a model repository.

    Every network is first run on single images and on a batch. Nothing is written unless all checks pass.
    A network is written as it is, but its external weights become part of the file, a single logit of two
    classes becomes two, and versions of ONNX are lowered as far as it allows.

    Args:
        files: one ONNX file per member, which maps float32 images `[N, 3, H, W]` to float32 logits `[N, C]`,
            with a dynamic batch size N.
        repository: Triton's model repository; created if it does not exist.
        name: the ensemble's name.
        labels: one label per class, in order of class index, or a text file with one per line.
        mean: mean of each channel that the networks were trained with, in units of pixel / 255.
        std: standard deviations, likewise.
        resize_size: length in pixels that the shorter side is resized to before the central crop; by default
            the longer side of the networks' input.
        stretch: resize to the networks' input without keeping proportions, instead of cropping.
        interpolation: `"bilinear"` or `"bicubic"`.
        image_size: height and width, or one number for both, required if the files leave them dynamic.
        output: the name of the logits, required if the files have several outputs.
        weights: one positive number per member; by default all members weigh the same.
        samples: a folder of images to run the networks on; by default they are random.
        int8: quantise the networks with these options; by default they stay as they are.
        max_batch_size: the largest batch of every model.
        deployment: how Triton runs the members.
        overwrite: replace an ensemble of the same name.
        new_version: add a version to the ensemble of the same name; it keeps its `max_batch_size` and
            deployment.
        progress: called with a short description of each step.

    Returns:
        What was written.

    Raises:
        ExportError: a check failed, or the repository cannot be written.
    """
    if new_version and overwrite:
        raise DescriptionError("give either --new-version or --overwrite")
    if stretch and resize_size is not None:
        raise DescriptionError("--stretch does not crop: give either --stretch or --resize-size")
    if not files:
        raise DescriptionError("give at least one ONNX file")
    if isinstance(image_size, int):
        image_size = (image_size, image_size)
    repository = Path(repository)
    networks = _read_networks(files, output, progress)
    height, width = _common_size(networks, image_size)
    description = Description(
        name=name,
        num_members=len(networks),
        labels=read_labels(Path(labels)) if isinstance(labels, Path | str) else list(labels),
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
        check_can_extend(repository, description, int8 is not None)
    else:
        check_can_write(repository, name, overwrite)
    trials = make_samples(description.preprocessing, None if samples is None else Path(samples))
    logits = []
    notes = []
    for index, network in enumerate(networks):
        progress(f"running {network.path}")
        networks[index], member_logits, note = _run_and_check(network, trials, description.labels)
        logits.append(member_logits)
        notes.append(note)
    _check_mean(logits, weights)

    members = [Member(network.model, network.input, network.output) for network in networks]
    provenance = _provenance(networks, len(trials.names))
    parities = None
    parity = None
    accuracy_loss = None
    notes_on_all = note_repeated_labels(description.labels)
    if int8 is not None:
        from coserve_export.int8 import quantise

        quantised = quantise(members, description, int8, progress)
        members = quantised.members
        parity = quantised.parity
        accuracy_loss = quantised.accuracy_loss
        parities = quantised.parities
        notes_on_all += quantised.notes
        provenance = quantised.provenance(provenance, max(network.opset for network in networks))

    progress(f"writing {name}")
    if new_version:
        written = write_version(repository, description, members, provenance)
    else:
        written = write_ensemble(repository, description, members, provenance, overwrite)
    reports = report_members(description.member_names, members, parities, notes)
    classes = len(description.labels)
    return Report(name, written, repository, reports, classes, parity, accuracy_loss, notes_on_all)


def _read_networks(files: Sequence[Path | str], output: str | None, progress: Progress) -> list[OnnxFile]:
    networks: list[OnnxFile] = []
    for file in files:
        progress(f"reading {file}")
        network = read_onnx(Path(file), output)
        for other in networks:
            if other.model == network.model:
                raise NetworkError(
                    f"{other.path} and {file} are the same network; averaging it with itself gains nothing"
                )
        networks.append(network)
    return networks


def _common_size(networks: Sequence[OnnxFile], image_size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the height and width that all networks share; `image_size` fills in for dynamic ones."""
    sizes: dict[tuple[int, int], str] = {} if image_size is None else {image_size: "--image-size"}
    for network in networks:
        height = network.height
        width = network.width
        if image_size is not None:
            height = height or image_size[0]
            width = width or image_size[1]
        if height is None or width is None:
            raise NetworkError(f"{network.path} takes images of any size; choose one with --image-size")
        sizes.setdefault((height, width), str(network.path))
    if len(sizes) > 1:
        differing = ", ".join(f"{height}x{width} ({source})" for (height, width), source in sizes.items())
        raise NetworkError(f"members must take images of the same size, not {differing}")
    return next(iter(sizes))


def _run_and_check(
    network: OnnxFile, samples: Samples, labels: Sequence[str]
) -> tuple[OnnxFile, Logits, list[str]]:
    """Return the network as it is to be written, its logits `[N, C]`, and a note for the user."""
    notes = []
    subject = str(network.path)
    lowered = _with_older_operators(network)
    try:
        session = Session(network.model, subject)
    except NetworkError:
        # This ONNX Runtime may be older than the file, but not than the lowered one.
        if lowered is None:
            raise
        network = lowered
        lowered = None
        session = Session(network.model, subject)
    if len(labels) == 2 and session.run(network.output, {network.input: samples.images[:1]}).shape == (1, 1):
        network = with_two_logits(network)
        lowered = None if lowered is None else with_two_logits(lowered)
        session = Session(network.model, subject)
        notes.append(f"gives one logit, which counts as that of {labels[1]!r}; that of {labels[0]!r} is 0")
    logits = run_network(
        lambda images: session.run(network.output, {network.input: images}),
        samples,
        len(labels),
        subject,
        network.quantised,
    )
    if lowered is not None and _gives_the_same(lowered, samples, logits):
        network = lowered
    return network, logits, notes


def _with_older_operators(network: OnnxFile) -> OnnxFile | None:
    model = lower_opset(onnx.load_model_from_string(network.model))
    if model is None:
        return None
    return replace(network, model=model.SerializeToString(), opset=get_opset(model))


def _gives_the_same(lowered: OnnxFile, samples: Samples, logits: Logits) -> bool:
    try:
        session = Session(lowered.model, str(lowered.path))
        difference = np.abs(session.run(lowered.output, {lowered.input: samples.images}) - logits).max()
    except NetworkError:
        return False
    return bool(difference <= FP32_RELATIVE_LIMIT * np.abs(logits).max())


def _check_mean(logits: Sequence[Logits], weights: Sequence[float] | None) -> None:
    """Raise ParityError unless the mean graph averages the members' logits."""
    graph = mean_graph(len(logits), logits[0].shape[1], weights)
    onnx.checker.check_model(graph, full_check=True)
    session = Session(graph.SerializeToString(), "the ensemble's mean")
    mean = session.run("logits", dict(zip(mean_inputs(len(logits)), logits, strict=True)))
    limit = FP32_RELATIVE_LIMIT * float(np.abs(logits).max())
    parity = compare_logits(weighted_mean(logits, weights), mean)
    require_parity(parity, session.subject, limit, "the members' mean")


def _provenance(networks: Sequence[OnnxFile], images: int) -> dict[str, object]:
    return {
        # A file name need not be UTF-8; JSON must.
        "member_networks": [os.fsencode(network.path.stem).decode(errors="replace") for network in networks],
        "export": {"images": images, "opset": max(network.opset for network in networks)},
        "coserve_version": version("coserve"),
    }
