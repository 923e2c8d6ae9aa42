"""Writes inference responses; tensors are JSON or bytes, as in requests."""

import asyncio
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from coserve_server.api.json_pieces import write_list, write_object
from coserve_server.api.requests.answer_size import INLINE_VALUES
from coserve_server.api.v2.requests import FP32
from coserve_server.api.v2.schemas import InferRequest, Output, OutputParameters
from coserve_server.pipeline.classifier import Classification
from coserve_server.pipeline.combine import top_k

T = TypeVar("T")


@dataclass(frozen=True)
class Result:
    """An output tensor.

    Attributes:
        datatype: the protocol's name, `FP32` or `BYTES`.
        values: the logits, FP32 `[N, C]`, or the texts of all images, row-major.
    """

    datatype: str
    shape: Sequence[int]
    values: NDArray[np.float32] | list[str]

    def to_bytes(self) -> bytes:
        """Return the elements as in the binary tensor extension."""
        if isinstance(self.values, list):
            return b"".join(struct.pack("<I", len(text)) + text for text in map(str.encode, self.values))
        return self.values.tobytes()

    def to_list(self) -> list[Any]:
        """Return the elements as in JSON."""
        return self.values if isinstance(self.values, list) else self.values.ravel().tolist()


def make_outputs(request: InferRequest, answer: Classification) -> list[tuple[Output, Result]]:
    """Return the outputs that a request names, and their tensors."""
    logits = answer.combined.logits.astype(FP32)
    # Pydantic would copy the default of `parameters`, slowly.
    outputs = request.outputs or [Output(name=answer.ensemble.output_name, parameters=OutputParameters())]
    return [(wanted, _make_output(wanted, logits, answer.ensemble.labels)) for wanted in outputs]


def write_response(request: InferRequest, answer: Classification) -> tuple[bytes, int | None]:
    """Return a response's body, and the length of its JSON if tensors follow it as bytes."""
    model = answer.ensemble
    written = [
        _write_output(wanted, result, request.parameters.binary_data_output)
        for wanted, result in make_outputs(request, answer)
    ]
    fields = {
        "model_name": to_json(model.name),
        "model_version": to_json(model.version),
        "parameters": to_json(describe_answer(answer)),
        "outputs": b"[%b]" % b",".join(output for output, _ in written),
    }
    if request.id:
        fields["id"] = to_json(request.id)
    header = write_object(fields.items())
    tensors = [tensor for _, tensor in written if tensor is not None]
    return b"".join([header, *tensors]), len(header) if tensors else None


async def respond(
    write: Callable[[InferRequest, Classification], T], request: InferRequest, answer: Classification
) -> T:
    """Return the response that `write` makes, on a thread if it is large."""
    if answer.combined.logits.size <= INLINE_VALUES:
        return write(request, answer)
    return await asyncio.to_thread(write, request, answer)


def describe_answer(answer: Classification) -> dict[str, str | bool | float]:
    """Return what the protocol has no fields for; parameters may be strings, booleans and numbers."""
    used = [member.name for member in answer.members if member.logits is not None]
    missing = [f"{member.name}: {member.failure.reason}" for member in answer.members if member.failure]
    parameters: dict[str, str | bool | float] = {
        "degraded": answer.degraded,
        "members": ",".join(used),
        "overlap": answer.overlap,
    }
    if missing:
        parameters["missing"] = "; ".join(missing)
    if answer.stopping is not None:
        names = [member.name for member in answer.ensemble.members]
        images = [",".join(names[index] for index in members) for members in answer.answered]
        parameters["image_members"] = ";".join(images)
        parameters["early_stop_confidence"] = answer.stopping.confidence
        if answer.measured_top1 is not None:
            parameters["measured_top1"] = answer.measured_top1
    return parameters


def _make_output(wanted: Output, logits: NDArray[np.float32], labels: Sequence[str]) -> Result:
    count = wanted.parameters.classification
    if not count:
        return Result("FP32", logits.shape, logits)
    texts = [text for row in logits for text in _format_top(row, count, labels)]
    return Result("BYTES", [len(logits), len(texts) // len(logits)], texts)


def _format_top(row: NDArray[np.float32], count: int, labels: Sequence[str]) -> list[str]:
    """Format the largest logits of one image as Triton's classification extension does.

    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md
    """
    indices = top_k(row, count)
    return [
        f"{value:f}:{index}:{labels[index]}"
        for value, index in zip(row[indices].tolist(), indices.tolist(), strict=True)
    ]


def _write_output(wanted: Output, result: Result, binary_by_default: bool) -> tuple[bytes, bytes | None]:
    """Return a tensor's JSON, and its bytes if they follow the JSON."""
    binary = wanted.parameters.binary_data
    fields = {
        "name": to_json(wanted.name),
        "datatype": to_json(result.datatype),
        "shape": to_json(result.shape),
    }
    if binary_by_default if binary is None else binary:
        data = result.to_bytes()
        parameters = to_json({"binary_data_size": len(data)})
        return write_object((fields | {"parameters": parameters}).items()), data
    return write_object((fields | {"data": write_list(result.to_list())}).items()), None
