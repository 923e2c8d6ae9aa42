"""Encode and decode arrays in Triton's binary tensor data extension.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coserve_client.decoding import decode, parse_json
from coserve_client.errors import InputError, ProtocolError
from coserve_client.replies import EarlyStop, Inference

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

HEADER_LENGTH = "Inference-Header-Content-Length"
"""HTTP header with the length of the JSON that precedes the tensor."""


@dataclass(frozen=True)
class _OutputParameters:
    binary_data_size: int


@dataclass(frozen=True)
class _Output:
    datatype: str
    shape: tuple[int, ...]
    parameters: _OutputParameters


@dataclass(frozen=True)
class _Parameters:
    degraded: bool
    members: str
    overlap: float
    missing: str | None = None
    image_members: str | None = None
    early_stop_confidence: float | None = None
    measured_top1: float | None = None


@dataclass(frozen=True)
class _InferenceHeader:
    """The JSON of an inference response."""

    model_name: str
    model_version: str
    parameters: _Parameters
    outputs: tuple[_Output, ...]


def write_inference(
    images: "ArrayLike", input_name: str, early_stop: EarlyStop | None = None
) -> tuple[bytes, int, int]:
    """Encode an inference request. The arguments are those of `Client.infer`.

    Returns:
        The body, which is JSON followed by the tensor; the length of the JSON in bytes; the number of images.

    Raises:
        InputError: `images` is not an array of real numbers, another argument is not a string, or NumPy is
            not installed.
    """
    np = _numpy()
    texts = {"input_name": input_name} | ({} if early_stop is None else {"early_stop": early_stop})
    for name, text in texts.items():
        if not isinstance(text, str):
            raise InputError(f"{name} must be a string, not {type(text).__name__}")
    try:
        array = np.asarray(images)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"the images are not an array of real numbers: {error}") from error
    # NumPy would parse strings, and drop the imaginary part of complex numbers.
    if array.dtype.kind not in "biuf":
        raise InputError(f"the images are not an array of real numbers: their type is {array.dtype}")
    array = np.ascontiguousarray(array, "<f4")
    tensor = {
        "name": input_name,
        "shape": array.shape,
        "datatype": "FP32",
        "parameters": {"binary_data_size": array.nbytes},
    }
    parameters: dict[str, str | bool] = {"binary_data_output": True}
    if early_stop is not None:
        parameters["early_stop"] = early_stop
    request = {"inputs": [tensor], "parameters": parameters}
    header = json.dumps(request).encode()
    return header + array.tobytes(), len(header), len(array)


def read_inference(body: bytes, json_length: str | None) -> Inference:
    """Decode an inference response.

    Args:
        body: JSON followed by the tensor.
        json_length: value of the header `HEADER_LENGTH`, if the response has it.

    Raises:
        ProtocolError: the response is not valid.
    """
    np = _numpy()
    length = _parse_length(json_length, len(body))
    try:
        document = parse_json(body[:length])
    except ValueError as error:
        raise ProtocolError(f"the server's response is not valid JSON: {error}") from error
    header = decode(_InferenceHeader, document, "reply")
    if len(header.outputs) != 1 or header.outputs[0].datatype != "FP32":
        raise ProtocolError("the server's response must have exactly one output, of type FP32")
    (output,) = header.outputs
    announced = output.parameters.binary_data_size
    received = len(body) - length
    if announced != received:
        raise ProtocolError(f"the server's response announces {announced} tensor bytes but has {received}")
    if len(output.shape) != 2:
        raise ProtocolError(f"the server's logits must be [N, C], not {list(output.shape)}")
    try:
        logits = np.frombuffer(body, "<f4", offset=length).reshape(output.shape)
    except ValueError as error:
        raise ProtocolError(f"the server's tensor does not have the announced shape: {error}") from error
    parameters = header.parameters
    apart = parameters.image_members
    return Inference(
        model=header.model_name,
        version=header.model_version,
        logits=np.require(logits, np.float32, ["C", "ALIGNED"]),
        degraded=parameters.degraded,
        members=tuple(parameters.members.split(",")),
        missing=parameters.missing,
        overlap=parameters.overlap,
        image_members=None if apart is None else tuple(tuple(names.split(",")) for names in apart.split(";")),
        early_stop_confidence=parameters.early_stop_confidence,
        measured_top1=parameters.measured_top1,
    )


def _parse_length(text: str | None, limit: int) -> int:
    # Python refuses to parse numbers of thousands of digits.
    if text is None or not text.isdecimal() or len(text) > 20 or int(text) > limit:
        raise ProtocolError(f"the server's response has no valid {HEADER_LENGTH} header")
    return int(text)


def _numpy() -> Any:
    try:
        import numpy as np
    except ImportError as error:
        raise InputError("tensors need NumPy: pip install numpy") from error
    return np
