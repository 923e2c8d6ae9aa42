"""Exporting the networks of a training run."""

from collections.abc import Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import torch

from coserve_export.accuracy import measure_accuracy
from coserve_export.compatibility import lower_ir_version
from coserve_export.deployment import DEFAULT_DEPLOYMENT, Deployment
from coserve_export.ensemble import IMAGES, LOGITS, Description, Member, Preprocessing
from coserve_export.errors import DescriptionError, NetworkError, on_one_line
from coserve_export.int8 import Int8, quantise
from coserve_export.logits import AMPLIFICATION, check_logits
from coserve_export.mean_graph import mean_graph, mean_inputs
from coserve_export.onnx_export import OPSET, convert_to_fp16, export_network, reject_fp16_overflow
from coserve_export.parity import (
    Images,
    Logits,
    Parity,
    Precision,
    compare_logits,
    difference_limit,
    require_parity,
    run_in_batches,
    weighted_mean,
)
from coserve_export.report import Progress, Report, export_record, report_members
from coserve_export.repository import check_can_write, write_ensemble
from coserve_export.session import Session
from coserve_export.versions import check_can_extend, write_version
from coserve_training.runs.folder import Checkpoint, Run, load_run

MAX_FILE_BYTES = 2**31 - 1


def export_run(
    folder: Path | str,
    repository: Path | str,
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

    The ONNX networks are first compared with torch on the run's held-out images. Nothing is written unless
    all checks pass.

    Args:
        folder: a run folder of `coserve train`.
        repository: Triton's model repository; created if it does not exist.
        name: the ensemble's name; by default the network and the split, such as `wide_resnet16_8_s2`.
        precision: `"fp32"` or `"fp16"` for weights and arithmetic; input and logits are always fp32.
        int8: quantise the fp32 networks with these options; by default they are not quantised.
        checkpoint: `"last"`, or `"best"` for the best epoch (docs/guides/training/data.md, Splits).
        max_batch_size: the largest batch of every model.
        deployment: how Triton runs the members.
        overwrite: replace an ensemble of the same name.
        new_version: add a version to the ensemble of the same name; it keeps its `max_batch_size` and
            deployment.
        progress: called with a short description of each step.

    Returns:
        What was written.

    Raises:
        coserve_training.errors.TrainingError: the run cannot be loaded.
        ExportError: a check failed, or the repository cannot be written.
    """
    progress("loading the run")
    return export_networks(
        load_run(Path(folder), checkpoint),
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
    repository: Path | str,
    *,
    name: str | None = None,
    precision: Precision = "fp32",
    int8: Int8 | None = None,
    max_batch_size: int = 64,
    deployment: Deployment = DEFAULT_DEPLOYMENT,
    overwrite: bool = False,
    new_version: bool = False,
    evaluation_data: Sequence[Path] = (),
    progress: Progress = lambda _: None,
) -> Report:
    """Export a run that is already loaded, as `export_run` does.

    With `evaluation_data`, its test split measures the accuracy of the ONNX networks, unless `int8` does so.

    Raises:
        ExportError: a check failed, or the repository cannot be written.
    """
    if new_version and overwrite:
        raise DescriptionError("give either --new-version or --overwrite")
    if precision not in get_args(Precision):
        raise DescriptionError(
            f"precision must be fp32 or fp16, not {precision!r}; for int8, pass int8=Int8(…)"
        )
    if int8 is not None and precision != "fp32":
        raise DescriptionError(f"int8 quantises fp32 networks: give either int8 or precision {precision}")
    repository = Path(repository)
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
        check_can_extend(repository, description, int8 is not None)
    else:
        check_can_write(repository, description.name, overwrite)
    images = _normalised_samples(run, preprocessing)

    members: list[Member] = []
    parities: list[Parity] = []
    references: list[Logits] = []
    served: list[Logits] = []
    for index, network in enumerate(run.members):
        subject = f"member {index}"
        progress(f"exporting {subject} of {len(run.members)}")
        model = _to_onnx(network, subject, preprocessing, precision)
        reference, logits, parity = _compare_member(network, model, subject, images, precision)
        references.append(reference)
        served.append(logits)
        members.append(Member(model))
        parities.append(parity)
    ensemble_parity = _compare_mean(references, served, precision)
    provenance = run.provenance | {
        "export": export_record(precision, ensemble_parity, parities) | {"opset": OPSET},
        "coserve_version": version("coserve"),
    }
    accuracy_loss = None
    notes: Sequence[str] = ()
    if int8 is not None:
        quantised = quantise(members, description, int8, progress, run.folder)
        members = quantised.members
        ensemble_parity = quantised.parity
        accuracy_loss = quantised.accuracy_loss
        parities = quantised.parities
        provenance = quantised.provenance(provenance, OPSET)
        notes = quantised.notes
    elif evaluation_data:
        progress("measuring accuracy")
        measured = measure_accuracy(members, description, evaluation_data)
        provenance |= measured.provenance
        notes = [*measured.notes, f"top-1 accuracy {measured.top1:.2%} of {measured.images} images"]

    progress(f"writing {description.name}")
    if new_version:
        written = write_version(repository, description, members, provenance)
    else:
        written = write_ensemble(repository, description, members, provenance, overwrite)
    reports = report_members(description.member_names, members, parities)
    return Report(
        description.name, written, repository, reports, len(run.labels), ensemble_parity, accuracy_loss, notes
    )


def _normalised_samples(run: Run, preprocessing: Preprocessing) -> Images:
    """Return the run's samples as network input, `[N, 3, H, W]`."""
    count, *shape = run.samples.shape
    expected = [preprocessing.height, preprocessing.width, 3]
    if count < 2 or shape != expected or run.samples.dtype != np.uint8:
        raise DescriptionError(
            f"the run needs at least two uint8 samples of shape {expected}, "
            f"not {count} {run.samples.dtype} samples of shape {shape}"
        )
    return preprocessing.normalise(run.samples)


def _to_onnx(
    network: torch.nn.Module, subject: str, preprocessing: Preprocessing, precision: Precision
) -> bytes:
    """Return a network as a checked, serialised ONNX model."""
    try:
        model = export_network(network, (preprocessing.height, preprocessing.width))
        if precision == "fp16":
            model = convert_to_fp16(model)
        if model.ByteSize() > MAX_FILE_BYTES:
            raise NetworkError("its weights exceed the 2 GiB that one ONNX file can hold")
        lower_ir_version(model)
        onnx.checker.check_model(model, full_check=True)
    except (NetworkError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise NetworkError(f"{subject}: {on_one_line(error)}") from error
    return model.SerializeToString()


def _compare_member(
    network: torch.nn.Module, model: bytes, subject: str, images: Images, precision: Precision
) -> tuple[Logits, Logits, Parity]:
    """Return torch's logits, ONNX Runtime's logits and their parity, or raise if they differ too much."""
    session = Session(model, subject)
    range_check = reject_fp16_overflow(network, subject) if precision == "fp16" else nullcontext()
    with torch.inference_mode(), range_check:
        reference = run_in_batches(lambda batch: network(torch.from_numpy(batch)).numpy(), images)
    logits = run_in_batches(lambda batch: session.run(LOGITS, {IMAGES: batch}), images)
    parity = compare_logits(reference, logits)
    require_parity(parity, subject, difference_limit(precision, reference))
    check_logits(logits, lambda: session.run(LOGITS, {IMAGES: AMPLIFICATION * images}), subject)
    return reference, logits, parity


def _compare_mean(references: list[Logits], served: list[Logits], precision: Precision) -> Parity:
    """Run the mean graph on the members' logits; return its parity with torch's mean, or raise."""
    subject = "the ensemble's mean"
    graph = mean_graph(len(served), served[0].shape[1])
    onnx.checker.check_model(graph, full_check=True)
    inputs = dict(zip(mean_inputs(len(served)), served, strict=True))
    logits = Session(graph.SerializeToString(), subject).run(LOGITS, inputs)
    reference = weighted_mean(references)
    parity = compare_logits(reference, logits)
    require_parity(parity, subject, difference_limit(precision, reference))
    return parity
