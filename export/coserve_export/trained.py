"""Exporting the networks of a training run."""

from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
import torch

from coserve_export.deployment import DEFAULT_DEPLOYMENT, Deployment
from coserve_export.ensemble import IMAGES, LOGITS, Description, Member, Preprocessing
from coserve_export.errors import DescriptionError, NetworkError, on_one_line
from coserve_export.int8 import Int8, quantise
from coserve_export.mean_graph import mean_graph, mean_inputs
from coserve_export.onnx_export import OPSET, export_network, to_fp16, within_fp16
from coserve_export.parity import (
    Images,
    Logits,
    Parity,
    Precision,
    compare,
    difference_limit,
    in_batches,
    require,
    weighted_mean,
)
from coserve_export.report import MemberReport, Progress, Report
from coserve_export.repository import check_free, write_ensemble
from coserve_export.session import Session
from coserve_export.versions import check_extends, write_version
from coserve_training.runs.folder import Checkpoint, Run, load_run

MAX_FILE_BYTES = 2**31 - 1


def export_run(
    folder: Path,
    repository: Path,
    *,
    name: str | None = None,
    precision: Precision = "fp32",
    int8: Int8 | None = None,
    checkpoint: Checkpoint = "last",
    max_batch_size: int = 64,
    deployment: Deployment = DEFAULT_DEPLOYMENT,
    overwrite: bool = False,
    new_version: bool = False,
    progress: Progress = lambda _: None,
) -> Report:
    """Export the networks of a run folder into a model repository.

    Args:
        folder: of `coserve train`.
        repository: Triton's model repository; made where it does not exist.
        name: of the ensemble; by default the network and the split, e.g. `wide_resnet16_8_s2`.
        precision: of weights and arithmetic; input and logits are fp32 always.
        int8: quantise what was checked in fp32; None does not.
        checkpoint: the last epoch's or the best one's.
        max_batch_size: of every model.
        deployment: how Triton runs the members.
        overwrite: replace an ensemble of the same name.
        new_version: add a version to the ensemble of the same name, whose configuration stays.
        progress: called with what is being done.

    Raises:
        coserve_training.errors.TrainingError: for a run that cannot be loaded.
        ExportError: where a check fails or the repository cannot be written; nothing is written then.
    """
    progress("loading the run")
    return export_networks(
        load_run(folder, checkpoint),
        repository,
        name=name,
        precision=precision,
        int8=int8,
        max_batch_size=max_batch_size,
        deployment=deployment,
        overwrite=overwrite,
        new_version=new_version,
        progress=progress,
    )


def export_networks(
    run: Run,
    repository: Path,
    *,
    name: str | None = None,
    precision: Precision = "fp32",
    int8: Int8 | None = None,
    max_batch_size: int = 64,
    deployment: Deployment = DEFAULT_DEPLOYMENT,
    overwrite: bool = False,
    new_version: bool = False,
    progress: Progress = lambda _: None,
) -> Report:
    """Export trained networks: as `export_run`, with the run in memory.

    Raises:
        ExportError: where a check fails or the repository cannot be written; nothing is written then.
    """
    preprocessing = Preprocessing.from_json(run.preprocessing)
    description = Description(
        name=name or f"{run.provenance['network']}_s{run.provenance['split']}",
        num_members=len(run.members),
        labels=run.labels,
        preprocessing=preprocessing,
        max_batch_size=max_batch_size,
        deployment=deployment,
    )
    if new_version:
        check_extends(repository, description)
    else:
        check_free(repository, description.name, overwrite)
    images = _samples(run, preprocessing)

    members, reports = [], []
    references, served = [], []
    for index, network in enumerate(run.members):
        subject = f"member {index}"
        progress(f"exporting {subject} of {len(run.members)}")
        model = _to_onnx(network, subject, preprocessing, precision)
        reference, logits, parity = _compare_member(network, model, subject, images, precision)
        references.append(reference)
        served.append(logits)
        members.append(Member(model))
        reports.append(MemberReport(description.member_names[index], len(model), parity))
    ensemble_parity = _compare_mean(references, served, precision)
    provenance = run.provenance | {
        "export": _export_record(precision, ensemble_parity, reports),
        "coserve_version": version("coserve"),
    }
    loss = None
    if int8 is not None:
        quantised = quantise(members, description, int8, progress)
        members, ensemble_parity, loss = quantised.members, quantised.parity, quantised.loss
        reports = quantised.reports(description.member_names)
        provenance = quantised.provenance(provenance) | {"export": quantised.export | {"opset": OPSET}}

    progress(f"writing {description.name}")
    if new_version:
        written = write_version(repository, description, members, provenance)
    else:
        written = write_ensemble(repository, description, members, provenance, overwrite)
    return Report(description.name, written, repository, reports, len(run.labels), ensemble_parity, loss)


def _samples(run: Run, preprocessing: Preprocessing) -> Images:
    """Normalised samples `[N, 3, H, W]`."""
    count, *shape = run.samples.shape
    expected = [preprocessing.height, preprocessing.width, 3]
    if count < 2 or shape != expected or run.samples.dtype != np.uint8:
        raise DescriptionError(
            f"comparing needs at least two 8-bit images of shape {expected}, not {count} of {shape}"
        )
    return preprocessing.normalise(run.samples)


def _to_onnx(
    network: torch.nn.Module, subject: str, preprocessing: Preprocessing, precision: Precision
) -> bytes:
    """Serialise a checked ONNX model, its weights inside."""
    try:
        model = export_network(network, (preprocessing.height, preprocessing.width))
        if precision == "fp16":
            model = to_fp16(model)
        if model.ByteSize() > MAX_FILE_BYTES:
            raise NetworkError("its weights exceed the 2 GiB that one ONNX file can hold")
        onnx.checker.check_model(model, full_check=True)
    except (NetworkError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise NetworkError(f"{subject}: {on_one_line(error)}") from error
    return model.SerializeToString()


def _compare_member(
    network: torch.nn.Module, model: bytes, subject: str, images: Images, precision: Precision
) -> tuple[Logits, Logits, Parity]:
    """Return the logits of torch, those of ONNX Runtime, and their parity, which is required."""
    session = Session(model, subject)
    in_range = within_fp16(network, subject) if precision == "fp16" else nullcontext()
    with torch.inference_mode(), in_range:
        reference = in_batches(lambda batch: network(torch.from_numpy(batch)).numpy(), images)
    logits = in_batches(lambda batch: session.run(LOGITS, {IMAGES: batch}), images)
    parity = compare(reference, logits)
    require(parity, subject, difference_limit(precision, reference))
    return reference, logits, parity


def _compare_mean(references: list[Logits], served: list[Logits], precision: Precision) -> Parity:
    """Run the mean graph on the members' logits, as serving does, and require parity with torch's mean."""
    subject = "the ensemble's mean"
    graph = mean_graph(len(served), served[0].shape[1])
    onnx.checker.check_model(graph, full_check=True)
    inputs = dict(zip(mean_inputs(len(served)), served, strict=True))
    logits = Session(graph.SerializeToString(), subject).run(LOGITS, inputs)
    reference = weighted_mean(references)
    parity = compare(reference, logits)
    require(parity, subject, difference_limit(precision, reference))
    return parity


def _export_record(precision: Precision, parity: Parity, members: list[MemberReport]) -> dict[str, object]:
    """The contract's `provenance.export`, the members' own figures added."""
    return {
        "precision": precision,
        "max_abs_difference": parity.max_abs_difference,
        "top1_agreement": parity.top1_agreement,
        "images": parity.images,
        "opset": OPSET,
        "members": [
            {
                "max_abs_difference": member.parity.max_abs_difference,
                "top1_agreement": member.parity.top1_agreement,
            }
            for member in members
            if member.parity is not None
        ],
    }
