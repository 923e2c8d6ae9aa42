"""Quantising members to int8, and what that costs, measured on real images."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from coserve_export.ensemble import Description, Member
from coserve_export.errors import AccuracyError, DescriptionError, NetworkError, ParityError, on_one_line
from coserve_export.labelled import LabelledImages, read_labelled
from coserve_export.parity import Images, Logits, Parity, compare, weighted_mean
from coserve_export.report import AccuracyLoss, MemberReport, Progress
from coserve_export.session import Session

TOP1_AGREEMENT = 0.95
"""Of images that were not calibrated on; trained Wide ResNets agree on 98 to 99 %."""
MIN_OPSET = 13
"""Of ONNX's own operators; before it there is no scale per channel."""


@dataclass(frozen=True)
class Int8:
    """What quantising needs, and what it may cost.

    Attributes:
        calibration_data: images whose activations set the ranges, in any form `coserve train --data` takes;
            of their training split, where there is one.
        evaluation_data: likewise; the test split says what accuracy is lost. Empty: that is not measured.
        calibration_images: at most so many are drawn, and as many others to compare fp32 and int8 on.
        max_accuracy_loss: of the ensemble's top-1 accuracy, in percentage points.
    """

    calibration_data: Sequence[Path]
    evaluation_data: Sequence[Path] = ()
    calibration_images: int = 512
    max_accuracy_loss: float = 0.3

    def __post_init__(self) -> None:
        if not self.calibration_data:
            raise DescriptionError("precision int8 needs --calibration-data, images like those to be served")


@dataclass(frozen=True)
class Quantised:
    """Members in int8; how far they, and their mean, agree with those in fp32.

    Attributes:
        loss: of accuracy; None where it was not measured.
        export: for the provenance's `export`.
        measured: of the int8 ensemble, the provenance's `accuracy` and `calibration`.
    """

    members: list[Member]
    parities: list[Parity]
    parity: Parity
    loss: AccuracyLoss | None
    export: dict[str, object]
    measured: dict[str, object]

    def reports(self, names: Sequence[str]) -> list[MemberReport]:
        """Of members of these names."""
        return [
            MemberReport(name, len(member.model), parity)
            for name, member, parity in zip(names, self.members, self.parities, strict=True)
        ]

    def provenance(self, of_fp32: Mapping[str, object]) -> dict[str, object]:
        """Of the int8 ensemble: what was measured in fp32 no longer holds."""
        kept = {key: value for key, value in of_fp32.items() if key not in ("accuracy", "calibration")}
        return kept | self.measured


def quantise(members: Sequence[Member], description: Description, how: Int8, progress: Progress) -> Quantised:
    """Quantise every member: weights and activations in 8 bits, scales per channel.

    Weights use 7 of their 8 bits: processors without VNNI add products in 16 bits, which would overflow.

    Raises:
        DescriptionError: the images cannot be used.
        NetworkError: a member cannot be quantised.
        ParityError: fewer than 95 in 100 images keep their class.
        AccuracyError: more accuracy is lost than `how` allows.
    """
    progress("reading images")
    calibration, others = _draw(how, description)
    evaluation = _evaluation(how, description)
    images = np.concatenate(list(calibration.batches()))
    quantised = []
    for index, member in enumerate(members):
        progress(f"quantising member {index} of {len(members)}")
        model = _quantise(member, images, f"member {index}")
        quantised.append(replace(member, model=model))
    progress("comparing int8 with fp32")
    before, after = _logits(members, others), _logits(quantised, others)
    parities = [compare(*pair) for pair in zip(before, after, strict=True)]
    means = [weighted_mean(list(logits), description.weights) for logits in (before, after)]
    parity = compare(*means)
    for subject, found in zip(
        [*(f"member {i}" for i in range(len(members))), "the ensemble's mean"],
        [*parities, parity],
        strict=True,
    ):
        _require(found, subject)
    export = _record(parities, parity) | {"calibration_images": len(calibration)}
    if evaluation is None:
        return Quantised(quantised, parities, parity, None, export, {})
    progress("measuring accuracy")
    loss, measured = _measure(members, quantised, evaluation, description)
    if loss.points > how.max_accuracy_loss:
        raise AccuracyError(
            f"int8 is right on {loss.int8:.2%} of {loss.images} images, fp32 on {loss.fp32:.2%}: "
            f"{loss.points:.2f} points lost, more than the {how.max_accuracy_loss:g} of --max-accuracy-loss; "
            "nothing was written"
        )
    return Quantised(quantised, parities, parity, loss, export | {"accuracy_loss": asdict(loss)}, measured)


def _record(parities: Sequence[Parity], parity: Parity) -> dict[str, object]:
    def figures(of: Parity) -> dict[str, object]:
        return {"max_abs_difference": of.max_abs_difference, "top1_agreement": of.top1_agreement}

    members = [figures(member) for member in parities]
    return {"precision": "int8", **figures(parity), "images": parity.images, "members": members}


def _draw(how: Int8, description: Description) -> tuple[LabelledImages, LabelledImages]:
    """Images to calibrate on, and others to compare on."""
    found = read_labelled(
        how.calibration_data, ["train", "test"], description.labels, description.preprocessing
    )
    if len(found) < 2 or how.calibration_images < 1:
        raise DescriptionError(f"quantising needs at least two images, not {len(found)}")
    count = min(how.calibration_images, len(found) // 2)
    order = np.random.default_rng(0).permutation(len(found))
    return found.choose(order[:count]), found.choose(order[count : 2 * count])


def _evaluation(how: Int8, description: Description) -> LabelledImages | None:
    """Images to measure accuracy on, where there are any."""
    if not how.evaluation_data:
        return None
    return read_labelled(how.evaluation_data, ["test"], description.labels, description.preprocessing)


def _quantise(member: Member, images: Images, subject: str) -> bytes:
    opset = max((e.version for e in _imports(member.model) if e.domain in ("", "ai.onnx")), default=0)
    if opset < MIN_OPSET:
        raise NetworkError(f"{subject}: quantising needs ONNX opset {MIN_OPSET}, not {opset}; export it anew")
    with tempfile.TemporaryDirectory() as folder, _quiet():
        original, prepared, result = (Path(folder, name) for name in ("fp32", "prepared", "int8"))
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
            onnx.checker.check_model(model, full_check=True)
        # The quantiser raises whatever it meets.
        except Exception as error:
            raise NetworkError(f"{subject}: cannot be quantised: {on_one_line(error)}") from error
    if not any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        raise NetworkError(f"{subject}: has no layer that can be quantised")
    return model.SerializeToString()


def _imports(model: bytes) -> Any:
    return onnx.load_model_from_string(model).opset_import


def _drop_unused_imports(model: onnx.ModelProto) -> None:
    """ONNX Runtime's preparation names every domain it knows."""
    used = {node.domain for node in model.graph.node} | {""}
    for entry in [entry for entry in model.opset_import if entry.domain not in used]:
        model.opset_import.remove(entry)


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, images: Images, size: int = 32) -> None:
        self._batches = iter([{name: images[i : i + size]} for i in range(0, len(images), size)])

    def get_next(self) -> dict[str, Images] | None:
        """The next batch, as the quantiser asks for it."""
        return next(self._batches, None)


def _logits(members: Sequence[Member], images: LabelledImages) -> npt.NDArray[np.float32]:
    """Of every member, `[S, N, C]`."""
    sessions = [(Session(member.model, f"member {i}"), member) for i, member in enumerate(members)]
    batches = [
        np.stack([session.run(member.output, {member.input: batch}) for session, member in sessions])
        for batch in images.batches()
    ]
    return np.concatenate(batches, axis=1)


def _require(parity: Parity, subject: str) -> None:
    if np.isnan(parity.max_abs_difference):
        raise ParityError(subject, parity.max_abs_difference, np.inf, "its logits are not all finite")
    # Whether some logit is far off does not matter here; ranges cut off what no calibration image reached.
    if parity.top1_agreement < TOP1_AGREEMENT:
        changed = f"{1 - parity.top1_agreement:.1%} of {parity.images} images"
        reason = (
            f"int8 puts {changed} into another class than fp32, and {1 - TOP1_AGREEMENT:.0%} are allowed; "
            "more --calibration-images, like those that will be asked about, may help"
        )
        raise ParityError(subject, parity.max_abs_difference, np.inf, reason)


def _measure(
    members: Sequence[Member], quantised: Sequence[Member], images: LabelledImages, description: Description
) -> tuple[AccuracyLoss, dict[str, object]]:
    """What is lost, and the int8 ensemble's own `accuracy` and `calibration`."""
    import torch

    from coserve_training.runs.calibrate import calibrate
    from coserve_training.runs.evaluate import score, score_members

    before, after = _logits(members, images), _logits(quantised, images)
    means = [weighted_mean(list(logits), description.weights) for logits in (before, after)]
    loss = AccuracyLoss(len(images), *(_top1(mean, images) for mean in means))
    logits, targets = torch.from_numpy(after), torch.from_numpy(images.targets)
    accuracy = asdict(score_members(logits, targets))
    # Temperatures and subsets are of members that weigh the same.
    if description.unequal_weights is not None:
        ensemble = score(torch.from_numpy(means[1]), targets)
        return loss, {"accuracy": accuracy | {"ensemble": asdict(ensemble)}}
    counts = torch.bincount(targets, minlength=len(description.labels))
    if int(counts.min()) < 2:
        return loss, {"accuracy": accuracy}
    calibration, subsets = calibrate(logits, targets)
    accuracy["subsets"] = [asdict(subset) for subset in subsets]
    return loss, {"accuracy": accuracy, "calibration": asdict(calibration)}


def _top1(logits: Logits, images: LabelledImages) -> float:
    return float(np.mean(logits.argmax(axis=1) == images.targets))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantiser's remarks, logged and printed, from the user."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        logging.disable(logging.NOTSET)
