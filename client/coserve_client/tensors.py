"""Arrays on their way to the server and back: Triton's binary tensor data extension.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from coserve_client.decoding import decode
from coserve_client.errors import InputError, ProtocolError
from coserve_client.replies import Inference

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

HEADER_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True)
class _Size:
    binary_data_size: int


@dataclass(frozen=True)
class _Output:
    datatype: str
    shape: tuple[int, ...]
    parameters: _Size


@dataclass(frozen=True)
class _Combined:
    degraded: bool
    members: str
    overlap: float


@dataclass(frozen=True)
class _Head:
    """The JSON of an inference response."""

    model_name: str
    model_version: str
    parameters: _Combined
    outputs: tuple[_Output, ...]


def write_inference(images: "ArrayLike", input_name: str) -> tuple[bytes, int]:
    """A request's body, and the length of its JSON, which the tensor follows.

    Raises:
        InputError: `images` are no array of real numbers, or numpy is not installed.
    """
    np = _numpy()
    try:
        given = np.asarray(images)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"the images are no array of real numbers: {error}") from error
    # numpy would parse strings, and drop the imaginary part of complex numbers.
    if given.dtype.kind not in "biuf":
        raise InputError(f"the images are no array of real numbers, but of {given.dtype}")
    array = np.ascontiguousarray(given, "<f4")
    tensor = {
        "name": input_name,
        "shape": array.shape,
        "datatype": "FP32",
        "parameters": {"binary_data_size": array.nbytes},
    }
    request = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    head = json.dumps(request).encode()
    return head + array.tobytes(), len(head)


def read_inference(body: bytes, json_length: str | None) -> Inference:
    """Read a response's body; `json_length` is the header.

    Raises:
        ProtocolError: it is not the answer of a Coserve server.
    """
    np = _numpy()
    if json_length is None or not json_length.isdecimal() or int(json_length) > len(body):
        raise ProtocolError("the server's answer does not say where its tensor begins")
    length = int(json_length)
    try:
        document = json.loads(body[:length])
    except ValueError as error:
        raise ProtocolError(f"the server's answer is no JSON: {error}") from error
    head = decode(_Head, document, "reply")
    if len(head.outputs) != 1 or head.outputs[0].datatype != "FP32":
        raise ProtocolError("the server's answer has another output than one of FP32")
    (output,) = head.outputs
    if output.parameters.binary_data_size != len(body) - length:
        raise ProtocolError("the server's answer has too few or too many bytes")
    try:
        logits = np.frombuffer(body, "<f4", offset=length).reshape(output.shape)
    except ValueError as error:
        raise ProtocolError(f"the server's answer has another shape than it says: {error}") from error
    combined = head.parameters
    return Inference(
        model=head.model_name,
        version=head.model_version,
        logits=np.require(logits, np.float32, ["C", "ALIGNED"]),
        degraded=combined.degraded,
        members=tuple(combined.members.split(",")),
        missing=document["parameters"].get("missing"),
        overlap=combined.overlap,
    )


def _numpy() -> Any:
    try:
        import numpy as np
    except ImportError as error:
        raise InputError("tensors need numpy: pip install numpy") from error
    return np
