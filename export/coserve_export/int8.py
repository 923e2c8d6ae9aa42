"""Quantising members to int8, and measuring on real images what that costs."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from coserve_export.compatibility import get_opset, lower_ir_version
from coserve_export.ensemble import Description, Member
from coserve_export.errors import AccuracyError, DescriptionError, NetworkError, ParityError, on_one_line
from coserve_export.labelled import LabelledImages, read_calibration, read_evaluation, run_members
from coserve_export.parity import Images, Logits, Parity, compare_logits, weighted_mean
from coserve_export.report import AccuracyLoss, Progress, export_record

TOP1_AGREEMENT = 0.95
"""Required on images not used for calibration; trained Wide ResNets reach 98 to 99%."""
MAX_ACCURACY_LOSS = 0.3
"""Allowed by default, in percentage points."""
MIN_OPSET = 13
"""The first version of ONNX's standard operators with a scale per channel."""


@dataclass(frozen=True)
class Int8:
    """Options of quantisation to int8.

    Attributes:
        calibration_data: files or folders with images like those to be served, in any format that
            `coserve train --data` reads. They set the ranges of the activations. The train split is used if
            there is one. Images that a run was tested on, and those of `evaluation_data`, are left out.
        evaluation_data: images in the same formats, whose test split measures the accuracy lost; if empty, it
            is not measured. Without a test split, the images that a run held out are used.
        calibration_images: the number of images to calibrate on, fewer if there are not enough; as many
            others serve to compare int8 with fp32.
        max_accuracy_loss: the loss of the ensemble's top-1 accuracy that is allowed, in percentage points;
            by default 0.3. Only `evaluation_data` can measure it.

    Raises:
        DescriptionError: there is no calibration data, `calibration_images` is not positive, or a loss is
            given without `evaluation_data`.
    """

    calibration_data: Path | str | Sequence[Path | str]
    evaluation_data: Path | str | Sequence[Path | str] = ()
    calibration_images: int = 512
    max_accuracy_loss: float | None = None

    def __post_init__(self) -> None:
        if not self.calibration_data:
            raise DescriptionError("int8 needs --calibration-data, images like those to be served")
        if self.calibration_images < 1:
            raise DescriptionError(f"calibration images must be at least 1, not {self.calibration_images}")
        if self.max_accuracy_loss is not None and not self.evaluation_data:
            raise DescriptionError(
                "--max-accuracy-loss needs --evaluation-data, images to measure the loss on"
            )


@dataclass(frozen=True)
class Quantised:
    """Members in int8, and how they compare with fp32.

    Attributes:
        members: the quantised members.
        parities: one comparison per member.
        parity: the comparison of the ensemble's mean.
        accuracy_loss: the accuracy lost; None if it was not measured.
        export: the provenance's `export`, without `opset`.
        measured: the provenance's `accuracy` and `calibration` of the int8 ensemble, as far as measured.
        notes: what to report about the images, in lines.
    """

    members: list[Member]
    parities: list[Parity]
    parity: Parity
    accuracy_loss: AccuracyLoss | None
    export: dict[str, object]
    measured: dict[str, object]
    notes: Sequence[str]

    def provenance(self, fp32: Mapping[str, object], opset: int) -> dict[str, object]:
        """Return the fp32 ensemble's provenance with its measurements replaced by those of int8."""
        kept = {key: value for key, value in fp32.items() if key not in ("accuracy", "calibration")}
        return kept | self.measured | {"export": self.export | {"opset": opset}}


def quantise(
    members: Sequence[Member],
    description: Description,
    options: Int8,
    progress: Progress,
    run: Path | None = None,
) -> Quantised:
    """Quantise every member's weights and activations to 8 bits, with a scale per channel.

    Weights use 7 of their 8 bits: processors without VNNI add products in 16 bits, which could overflow.

    Args:
        members: the networks in fp32.
        description: the ensemble.
        options: how to quantise.
        progress: called with a short description of each step.
        run: the run folder of the networks, if any. Its test images stay out of calibration.

    Raises:
        DescriptionError: the images cannot be used, or the members are to run on GPUs.
        NetworkError: a member cannot be quantised.
        ParityError: more than 5 in 100 images change class.
        AccuracyError: more accuracy is lost than the options allow.
    """
    deployment = description.deployment
    if deployment.placement.gpus or deployment.cuda or deployment.tensorrt:
        raise DescriptionError(
            "int8 networks run on the CPU: ONNX Runtime has no int8 convolutions for CUDA, and TensorRT "
            "reads another form; for GPUs, export in fp16 or fp32, or leave out the options for GPUs"
        )
    progress("reading images")
    evaluation = _read_evaluation(options, description, run)
    calibration, comparison = _draw_calibration(options, description, evaluation, run)
    # Both may have the same note.
    notes = list(dict.fromkeys([*calibration.notes, *(() if evaluation is None else evaluation.notes)]))
    images = np.concatenate(list(calibration.batches()))
    quantised = []
    for index, member in enumerate(members):
        progress(f"quantising member {index} of {len(members)}")
        model = _quantise(member, images, f"member {index}")
        quantised.append(replace(member, model=model))
    progress("comparing int8 with fp32")
    before = run_members(members, comparison)
    after = run_members(quantised, comparison)
    parities = [compare_logits(*pair) for pair in zip(before, after, strict=True)]
    mean_before = weighted_mean(list(before), description.weights)
    mean_after = weighted_mean(list(after), description.weights)
    parity = compare_logits(mean_before, mean_after)
    for index, member_parity in enumerate(parities):
        _require_agreement(member_parity, f"member {index}")
    _require_agreement(parity, "the ensemble's mean")
    export = export_record("int8", parity, parities) | {"calibration_images": len(calibration)}
    if evaluation is None:
        notes.append("top-1 accuracy in int8 is not measured; --evaluation-data measures it")
        return Quantised(quantised, parities, parity, None, export, {}, notes)
    progress("measuring accuracy")
    loss, measured = _measure_accuracy(members, quantised, evaluation, description)
    allowed = MAX_ACCURACY_LOSS if options.max_accuracy_loss is None else options.max_accuracy_loss
    if loss.points > allowed:
        raise AccuracyError(
            f"int8 classifies {loss.int8:.2%} of {loss.images} images correctly, fp32 {loss.fp32:.2%}: "
            f"{loss.points:.2f} points lost, but --max-accuracy-loss is {allowed:g}; "
            "nothing was written"
        )
    export |= {"accuracy_loss": asdict(loss)}
    return Quantised(quantised, parities, parity, loss, export, measured, notes)


def _draw_calibration(
    options: Int8, description: Description, evaluation: LabelledImages | None, run: Path | None
) -> tuple[LabelledImages, LabelledImages]:
    """Draw images to calibrate on, and others to compare on. No image of the evaluation is among them."""
    paths = _to_paths(options.calibration_data)
    images = read_calibration(paths, description.labels, description.preprocessing, run)
    if evaluation is not None:
        images = images.without(evaluation)
    if len(images) < 2:
        raise DescriptionError(
            f"int8 needs at least two calibration images that are not test images, not {len(images)}"
        )
    count = min(options.calibration_images, len(images) // 2)
    order = np.random.default_rng(0).permutation(len(images))
    return images.choose(order[:count]), images.choose(order[count : 2 * count])


def _read_evaluation(options: Int8, description: Description, run: Path | None) -> LabelledImages | None:
    """Read the images to measure accuracy on; return None if there is no evaluation data."""
    paths = _to_paths(options.evaluation_data)
    if not paths:
        return None
    return read_evaluation(paths, description.labels, description.preprocessing, run)


def _to_paths(data: Path | str | Sequence[Path | str]) -> list[Path]:
    return [Path(data)] if isinstance(data, Path | str) else [Path(path) for path in data]


def _quantise(member: Member, images: Images, subject: str) -> bytes:
    opset = get_opset(onnx.load_model_from_string(member.model))
    if opset < MIN_OPSET:
        raise NetworkError(
            f"{subject}: int8 needs ONNX opset {MIN_OPSET} or later, not {opset}; export the network again"
        )
    with tempfile.TemporaryDirectory() as folder, _quiet():
        original = Path(folder, "fp32")
        prepared = Path(folder, "prepared")
        result = Path(folder, "int8")
        original.write_bytes(member.model)
        try:
            quant_pre_process(original, prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                result,
                _Batches(member.input, images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            model = onnx.load(result)
            _drop_unused_imports(model)
            lower_ir_version(model)
            onnx.checker.check_model(model, full_check=True)
        # The quantiser raises any kind of exception.
        except Exception as error:
            raise NetworkError(f"{subject}: cannot be quantised: {on_one_line(error)}") from error
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise NetworkError(f"{subject}: has no layer that can be quantised")
    return model.SerializeToString()


def _drop_unused_imports(model: onnx.ModelProto) -> None:
    """Drop operator sets that no node uses; ONNX Runtime's preparation adds every one it knows."""
    used = {node.domain for node in model.graph.node} | {""}
    for entry in [entry for entry in model.opset_import if entry.domain not in used]:
        model.opset_import.remove(entry)


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, images: Images, size: int = 32) -> None:
        self._batches = iter([{name: images[i : i + size]} for i in range(0, len(images), size)])

    def get_next(self) -> dict[str, Images] | None:
        """Return the next batch, or None after the last one."""
        return next(self._batches, None)


def _require_agreement(parity: Parity, subject: str) -> None:
    """Raise ParityError unless enough images keep their class; differences are not limited.

    Single logits may differ a lot, because values beyond those of the calibration images are clipped.
    """
    if np.isnan(parity.max_abs_difference):
        raise ParityError(subject, parity.max_abs_difference, np.inf, "its logits are not all finite")
    if parity.top1_agreement < TOP1_AGREEMENT:
        reason = (
            f"int8 changes the class of {1 - parity.top1_agreement:.1%} of {parity.images} images, but only "
            f"{1 - TOP1_AGREEMENT:.0%} are allowed; try more --calibration-images, like those to be served"
        )
        raise ParityError(subject, parity.max_abs_difference, np.inf, reason)


def _measure_accuracy(
    members: Sequence[Member], quantised: Sequence[Member], images: LabelledImages, description: Description
) -> tuple[AccuracyLoss, dict[str, object]]:
    """Return the accuracy lost, and the provenance's `accuracy` and `calibration` of the int8 ensemble."""
    import torch

    from coserve_export.accuracy import describe_scores, run_on
    from coserve_training.runs.evaluate import score

    before = run_on(members, images)
    after = run_on(quantised, images)
    mean_before = weighted_mean(list(before.logits.numpy()), description.weights)
    mean_after = weighted_mean(list(after.logits.numpy()), description.weights)
    loss = AccuracyLoss(len(images), _top1_accuracy(mean_before, images), _top1_accuracy(mean_after, images))
    # Calibration and subsets are defined only for members of equal weight.
    if description.unequal_weights is not None:
        ensemble = score(torch.from_numpy(mean_after), after.targets)
        return loss, {"accuracy": asdict(replace(after.score(), ensemble=ensemble))}
    val = None if images.val is None else run_on(quantised, images.val)
    return loss, describe_scores(after, val, len(description.labels))


def _top1_accuracy(logits: Logits, images: LabelledImages) -> float:
    return float(np.mean(logits.argmax(axis=1) == images.targets))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser's messages, logged and printed."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        logging.disable(logging.NOTSET)
