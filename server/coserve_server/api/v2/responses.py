"""Writes inference responses; tensors are JSON or bytes, as in requests."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from coserve_server.api.v2.requests import FP32, InferRequest, Output
from coserve_server.pipeline.classifier import Classification
from coserve_server.pipeline.combine import top_k


def write_response(request: InferRequest, answer: Classification) -> tuple[bytes, int | None]:
    """Return a response's body, and the length of its JSON if tensors follow it as bytes."""
    logits = answer.combined.logits.astype(FP32)
    model = answer.ensemble
    outputs = []
    tensors = []
    for wanted in request.outputs or [Output(name=model.output_name)]:
        output, tensor = _write_output(wanted, logits, model.labels, request.parameters.binary_data_output)
        outputs.append(output)
        tensors.append(tensor)
    document: dict[str, Any] = {
        "model_name": model.name,
        "model_version": model.version,
        "parameters": _describe_answer(answer),
        "outputs": outputs,
    }
    if request.id:
        document["id"] = request.id
    header = to_json(document)
    binary = any("binary_data_size" in output.get("parameters", {}) for output in outputs)
    return b"".join([header, *tensors]), len(header) if binary else None


def _write_output(
    wanted: Output, logits: NDArray[np.float32], labels: Sequence[str], binary_by_default: bool
) -> tuple[dict[str, Any], bytes]:
    """Return a tensor's JSON, and its bytes if they follow the JSON."""
    options = wanted.parameters
    binary = binary_by_default if options.binary_data is None else options.binary_data
    output: dict[str, Any] = {"name": wanted.name}
    if options.classification:
        texts = [text for row in logits for text in _format_top(row, options.classification, labels)]
        output |= {"datatype": "BYTES", "shape": [len(logits), len(texts) // len(logits)]}
        tensor = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
        elements: list[Any] = texts
    else:
        output |= {"datatype": "FP32", "shape": logits.shape}
        tensor = logits.tobytes()
        elements = logits.ravel().tolist()
    if binary:
        return output | {"parameters": {"binary_data_size": len(tensor)}}, tensor
    return output | {"data": elements}, b""


def _format_top(row: NDArray[np.float32], count: int, labels: Sequence[str]) -> list[str]:
    """Format the largest logits of one image as Triton's classification extension does.

    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md
    """
    return [f"{row[index]:f}:{index}:{labels[index]}" for index in top_k(row, count).tolist()]


def _describe_answer(answer: Classification) -> dict[str, str | bool | float]:
    """Return what the protocol has no fields for; parameters may be strings, booleans and numbers."""
    used = [member.name for member in answer.members if member.failure is None]
    missing = [f"{member.name}: {member.failure.reason}" for member in answer.members if member.failure]
    parameters: dict[str, str | bool | float] = {
        "degraded": bool(missing),
        "members": ",".join(used),
        "overlap": answer.overlap,
    }
    if missing:
        parameters["missing"] = "; ".join(missing)
    return parameters
