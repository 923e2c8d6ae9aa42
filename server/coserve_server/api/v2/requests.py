"""Reads inference requests, and the batch of images in them.

A tensor is part of the JSON, or bytes after it: Triton's binary tensor data extension
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md).
"""

import math
from collections.abc import Sequence
from itertools import chain
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field, StrictBool, StrictInt

from coserve_server.api.requests.bodies import parse_json
from coserve_server.api.v2.models import image_shape
from coserve_server.engines.base import Images
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import BadBodyError, InvalidParametersError

FP32 = np.dtype("<f4")
LARGEST = 1e4
"""Limit on the magnitude of values: normalised images stay below about 3, and sound networks give finite
logits up to this limit."""

Int64 = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
"""The protocol's integers; JSON itself does not limit them."""


def _or_empty(value: object) -> object:
    """Replace null, which some clients send for a missing object."""
    return {} if value is None else value


class InputParameters(BaseModel):
    """Parameters of an input."""

    binary_data_size: Annotated[Int64, Field(ge=0)] | None = None
    shared_memory_region: Any = None


class OutputParameters(BaseModel):
    """Parameters of an output."""

    binary_data: StrictBool | None = None
    classification: Annotated[Int64, Field(ge=1)] | None = Field(
        default=None, description="Number of largest elements to return, as `value:index:label`."
    )
    shared_memory_region: Any = None


class RequestParameters(BaseModel):
    """Parameters of a request."""

    binary_data_output: StrictBool = False
    timeout: Annotated[Int64, Field(ge=0)] = Field(default=0, description="Microseconds; 0 for no limit.")


class Input(BaseModel):
    """A tensor, with its elements in `data` or after the JSON."""

    name: str
    shape: list[Int64] = Field(fail_fast=True)
    datatype: str
    parameters: Annotated[InputParameters, BeforeValidator(_or_empty)] = InputParameters()
    data: list[Any] | None = None


class Output(BaseModel):
    """A requested tensor."""

    name: str
    parameters: Annotated[OutputParameters, BeforeValidator(_or_empty)] = OutputParameters()


class InferRequest(BaseModel):
    """An inference request."""

    id: str | None = None
    # Stop at the first fault: a report of all could be many times as large as the body.
    inputs: list[Input] = Field(fail_fast=True)
    outputs: list[Output] | None = Field(default=None, fail_fast=True)
    parameters: Annotated[RequestParameters, BeforeValidator(_or_empty)] = RequestParameters()


def read_request(
    model: Ensemble, body: bytes, header_length: str | None, max_images: int
) -> tuple[InferRequest, Images]:
    """Read a request and its tensor, which shares the body's memory if that is aligned.

    Args:
        header_length: the header `Inference-Header-Content-Length`: length of the JSON that the tensor's
            bytes follow. None if the body is all JSON; 0 if it is one image's tensor without any JSON.
        max_images: limits the number of values in the JSON. The size of the batch is not checked.

    Raises:
        BadBodyError: the JSON is invalid, or too few or too many bytes follow it.
        BodyTooLargeError: the JSON has far more values than that many images.
        InvalidParametersError: the model cannot answer this request.
    """
    length = _parse_length(header_length, len(body))
    raw = header_length is not None and length == 0
    max_values = max_images * math.prod(image_shape(model))
    request = (
        _request_for_bytes(model, len(body)) if raw else parse_json(InferRequest, body[:length], max_values)
    )
    tensor = check_tensors(model, request)
    size = tensor.parameters.binary_data_size
    if len(body) - length != (size or 0):
        raise BadBodyError(
            f"{len(body) - length} bytes follow the JSON, binary_data_size says {size or 0}; the header "
            "Inference-Header-Content-Length must be the length of the JSON"
        )
    if size is None:
        values: NDArray[np.float32] | NDArray[np.float64] = _from_json(tensor)
    elif tensor.data is not None:
        raise InvalidParametersError(f"input {tensor.name!r} has both data and binary_data_size")
    else:
        values = read_bytes(tensor, memoryview(body)[length:], f"binary_data_size says {size}")
    return request, make_batch(tensor, values)


def check_tensors(model: Ensemble, request: InferRequest) -> Input:
    """Return the request's only input, without checking its data.

    Raises:
        InvalidParametersError: the model does not have these inputs and outputs.
    """
    tensor = _only_input(model, request)
    _check_outputs(model, request)
    return tensor


def read_bytes(tensor: Input, data: bytes | memoryview, found: str) -> NDArray[np.float32]:
    """Return the bytes as elements, which share their memory.

    Args:
        found: end of the error message, which names the size that was found.

    Raises:
        InvalidParametersError: the shape needs another number of bytes.
    """
    needed = math.prod(tensor.shape) * FP32.itemsize
    if len(data) != needed:
        raise InvalidParametersError(
            f"input {tensor.name!r}: shape {tensor.shape} of FP32 is {needed} bytes, {found}"
        )
    return np.frombuffer(data, FP32)


def make_batch(tensor: Input, values: NDArray[np.float32] | NDArray[np.float64]) -> Images:
    """Return the elements in the input's shape.

    Raises:
        InvalidParametersError: a value is not finite, or too large.
    """
    # This also refuses NaN: comparisons with it are false.
    if not (values.min() >= -LARGEST and values.max() <= LARGEST):
        raise InvalidParametersError(
            f"input {tensor.name!r} must have finite values of at most {LARGEST:g} in magnitude"
        )
    return np.require(values.reshape(tensor.shape), np.float32, ["C", "ALIGNED"])


def _parse_length(header: str | None, body_length: int) -> int:
    if header is None:
        return body_length
    if not header.isdecimal() or not header.isascii() or len(header) > 18 or int(header) > body_length:
        raise BadBodyError(
            f"Inference-Header-Content-Length is {header[:40]!r}; the body has {body_length} bytes"
        )
    return int(header)


def _request_for_bytes(model: Ensemble, size: int) -> InferRequest:
    """Return the request that a body without JSON stands for."""
    tensor = Input(
        name=model.input_name,
        shape=[1, *image_shape(model)],
        datatype="FP32",
        parameters=InputParameters(binary_data_size=size),
    )
    return InferRequest(inputs=[tensor], parameters=RequestParameters(binary_data_output=True))


def _only_input(model: Ensemble, request: InferRequest) -> Input:
    names = [tensor.name for tensor in request.inputs]
    if names != [model.input_name]:
        raise InvalidParametersError(
            f"inputs are {', '.join(map(repr, names[:5])) or 'missing'}; "
            f"{model.name} takes one, {model.input_name!r}"
        )
    (tensor,) = request.inputs
    shape = image_shape(model)
    if tensor.datatype != "FP32":
        raise InvalidParametersError(
            f"input {tensor.name!r} is {tensor.datatype[:20]!r}; {model.name} takes 'FP32'"
        )
    if tensor.shape[1:] != shape or tensor.shape[0] < 1:
        raise InvalidParametersError(
            f"input {tensor.name!r} has shape {tensor.shape[:9]}; {model.name} takes "
            f"[N, {', '.join(map(str, shape))}] with N at least 1"
        )
    if tensor.parameters.shared_memory_region is not None:
        raise InvalidParametersError(f"input {tensor.name!r}: shared memory is not supported; send the data")
    return tensor


def _check_outputs(model: Ensemble, request: InferRequest) -> None:
    names = [output.name for output in request.outputs or []]
    if names not in ([], [model.output_name]):
        raise InvalidParametersError(
            f"outputs are {', '.join(map(repr, names[:5]))}; {model.name} gives one, {model.output_name!r}"
        )
    if any(output.parameters.shared_memory_region is not None for output in request.outputs or []):
        raise InvalidParametersError(f"output {names[0]!r}: shared memory is not supported; leave it out")


def _from_json(tensor: Input) -> NDArray[np.float64]:
    """Return the elements of `data`, which is flat or nested like the shape."""
    if tensor.data is None:
        raise InvalidParametersError(
            f"input {tensor.name!r} has neither data nor the parameter binary_data_size"
        )
    elements = _flatten(tensor.data, tensor.shape)
    count = math.prod(tensor.shape)
    if elements is None or len(elements) != count:
        fault = "is nested differently" if elements is None else f"has {len(elements)} elements"
        raise InvalidParametersError(
            f"input {tensor.name!r}: shape {tensor.shape} needs {count} elements, data {fault}"
        )
    if not set(map(type, elements)) <= {int, float}:
        raise InvalidParametersError(f"input {tensor.name!r}: data must hold only numbers")
    try:
        return np.array(elements, np.float64)
    except OverflowError as error:
        raise InvalidParametersError(f"input {tensor.name!r}: data holds a number too large") from error


def _flatten(data: list[Any], shape: Sequence[int]) -> list[Any] | None:
    """Return the elements of a list that is flat or nested like the shape, and None for other lists."""
    if list not in set(map(type, data)):
        return data
    if len(data) != shape[0]:
        return None
    for size in shape[1:]:
        if set(map(type, data)) != {list} or set(map(len, data)) != {size}:
            return None
        data = list(chain.from_iterable(data))
    return data
