"""Reads inference requests, and the batch of images in them.

A tensor is part of the JSON, or bytes after it: Triton's binary tensor data extension
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md).
"""

import math
from collections.abc import Collection, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coserve_server.api.requests.answer_size import check_predictions
from coserve_server.api.requests.bodies import parse_json
from coserve_server.api.requests.long_texts import LongTexts
from coserve_server.api.v2.image_files import (
    BYTES,
    check_shape,
    decode_texts,
    split_elements,
    split_sizes,
)
from coserve_server.api.v2.models import image_shape
from coserve_server.api.v2.numbers import MIN_BYTES, NumberArrays, read_numbers
from coserve_server.api.v2.schemas import InferRequest, Input, InputParameters, RequestParameters
from coserve_server.engines.base import Images
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import BadBodyError, InvalidParametersError, TooManyImagesError
from coserve_server.pipeline.preparation import EncodedImage
from coserve_server.settings import Settings

FP32 = np.dtype("<f4")
LARGEST = float(np.finfo(FP32).max)
CLASSIFY_ONLY = ("coverage", "member_predictions", "set_method", "top_k")
"""Parameters of `/v1/classify` without an effect here."""


def read_request(
    model: Ensemble, body: bytes, header_length: str | None, settings: Settings
) -> tuple[InferRequest, Images | list[EncodedImage]]:
    """Read a request and its images: a tensor, which shares the body's memory if that is aligned, or files.

    Args:
        header_length: the header `Inference-Header-Content-Length`: length of the JSON that the tensor's
            bytes follow. None if the body is all JSON; 0 if it is one image's tensor without any JSON.
        settings: limit the number of values in the JSON and of files, and the tensor's values. The size of
            its batch is not checked.

    Raises:
        BadBodyError: the JSON is invalid, or too few or too many bytes follow it.
        BodyTooLargeError: the JSON has far more values than that many images.
        InvalidParametersError: the model cannot answer this request.
    """
    length = _parse_length(header_length, len(body))
    raw = header_length is not None and length == 0
    texts = LongTexts(b"" if raw else body[:length], settings.max_images)
    arrays = NumberArrays(texts.rest)
    request = (
        _request_for_bytes(model, len(body))
        if raw
        else parse_json(InferRequest, arrays.rest, _max_values(model, len(arrays.rest), settings))
    )
    tensor = check_tensors(model, request, settings)
    size = _check_size(tensor, len(body) - length)
    if tensor.datatype == BYTES:
        return request, _read_files(tensor, body[length:], texts)
    values: NDArray[np.float32] | NDArray[np.float64]
    if (array := arrays.find(tensor.data)) is not None:
        values = read_numbers(tensor.name, array, tensor.shape)
    elif size is None:
        values = _from_json(tensor)
    else:
        values = read_bytes(tensor, memoryview(body)[length:], f"binary_data_size says {size}")
    return request, make_batch(tensor, values, settings.max_magnitude)


def check_tensors(model: Ensemble, request: InferRequest, settings: Settings) -> Input:
    """Return the request's only input, without checking its data.

    Raises:
        InvalidParametersError: the model does not have these inputs and outputs, or the answer would have too
            many predictions.
        TooManyImagesError: there are more files than the settings allow.
    """
    refuse_without_effect(request.parameters.model_extra or ())
    if request.parameters.priority:
        raise InvalidParametersError(
            f"priority is {request.parameters.priority}; requests have no priorities here, so leave it out"
        )
    tensor = _only_input(model, request)
    _check_outputs(model, request)
    if tensor.datatype == BYTES and tensor.shape[0] > settings.max_images:
        raise TooManyImagesError(f"{tensor.shape[0]} images, more than the {settings.max_images} allowed")
    check_predictions(settings, tensor.shape[0], _count_classified(model, request))
    return tensor


def refuse_without_effect(names: Iterable[str]) -> None:
    """Raise InvalidParametersError if a parameter has an effect in `/v1` alone; others are left alone."""
    if found := ", ".join(name for name in names if name in CLASSIFY_ONLY):
        raise InvalidParametersError(f"{found}: only /v1/classify has these parameters; leave them out")


def check_query(names: Collection[str]) -> None:
    """Raise InvalidParametersError if the URL has a parameter that would be dropped; unknown ones are."""
    refuse_without_effect(names)
    if "early_stop" in names:
        raise InvalidParametersError("early_stop: give it in the request's `parameters`, not in the URL")


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


def make_batch(
    tensor: Input, values: NDArray[np.float32] | NDArray[np.float64], max_magnitude: float
) -> Images:
    """Return the elements in the input's shape.

    Args:
        max_magnitude: limit on the magnitude of the values; 0 for any that are finite.

    Raises:
        InvalidParametersError: a value is not finite, or too large.
    """
    # This also refuses NaN: comparisons with it are false.
    largest = max_magnitude or LARGEST
    if not (values.min() >= -largest and values.max() <= largest):
        raise InvalidParametersError(
            f"input {tensor.name!r} must have finite values of at most {largest:g} in magnitude"
        )
    return np.require(values.reshape(tensor.shape), np.float32, ["C", "ALIGNED"])


def _max_values(model: Ensemble, size: int, settings: Settings) -> int:
    """Return the limit on the values in a request's JSON of `size` bytes, long arrays of numbers aside."""
    if size > MIN_BYTES:
        return settings.max_images
    return settings.max_images * math.prod(image_shape(model))


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
    if tensor.datatype not in ("FP32", BYTES):
        raise InvalidParametersError(
            f"input {tensor.name!r} is {tensor.datatype[:20]!r}; "
            f"{model.name} takes 'FP32', or image files as 'BYTES'"
        )
    if tensor.datatype == BYTES:
        check_shape(tensor.name, tensor.shape)
    elif tensor.shape[1:] != shape or tensor.shape[0] < 1:
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


def _count_classified(model: Ensemble, request: InferRequest) -> int:
    """Return the number of classes per image that the extension `classification` asks for."""
    counts = [output.parameters.classification or 0 for output in request.outputs or []]
    return sum(min(count, len(model.labels)) for count in counts)


def _check_size(tensor: Input, found: int) -> int | None:
    """Return the size of the binary tensor that follows the JSON; None if the JSON has the data.

    Args:
        found: number of bytes that follow.
    """
    size = tensor.parameters.binary_data_size
    if isinstance(size, str):
        if tensor.datatype != BYTES:
            raise InvalidParametersError(f"input {tensor.name!r}: binary_data_size must be a number")
        size = sum(map(int, size.split(",")))
    if found != (size or 0):
        raise BadBodyError(
            f"{found} bytes follow the JSON, binary_data_size says {size or 0}; the header "
            "Inference-Header-Content-Length must be the length of the JSON"
        )
    if size is not None and tensor.data is not None:
        raise InvalidParametersError(f"input {tensor.name!r} has both data and binary_data_size")
    return size


def _read_files(tensor: Input, data: bytes, long_texts: LongTexts) -> list[EncodedImage]:
    size = tensor.parameters.binary_data_size
    count = tensor.shape[0]
    if size is None:
        texts = None if tensor.data is None else _flatten(tensor.data, tensor.shape)
        return decode_texts(tensor.name, count, texts, long_texts)
    if isinstance(size, str):
        return split_sizes(tensor.name, [int(one) for one in size.split(",")], count, data)
    return split_elements(tensor.name, count, data)


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
