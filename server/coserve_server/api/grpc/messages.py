"""Converts gRPC messages to and from the models of `/v2`, which share its rules."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from tritonclient.grpc import service_pb2 as messages

from coserve_server.api.grpc.wire import has_more_fields
from coserve_server.api.requests.bodies import describe_faults
from coserve_server.api.requests.long_texts import SPARE_VALUES
from coserve_server.api.v2.image_files import BYTES, split_elements
from coserve_server.api.v2.requests import FP32, check_tensors, make_batch, read_bytes
from coserve_server.api.v2.responses import describe_answer, make_outputs
from coserve_server.api.v2.schemas import InferRequest, Input
from coserve_server.engines.base import Images
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import BadBodyError, BodyTooLargeError, InvalidParametersError
from coserve_server.pipeline.classifier import Classification
from coserve_server.pipeline.preparation import EncodedImage
from coserve_server.settings import Settings

PIECE_VALUES = 2**15

M = TypeVar("M", bound=Message)


def parse(kind: type[M], data: bytes) -> M:
    """Parse a message.

    Raises:
        BadBodyError: the data is not a message of that kind.
        BodyTooLargeError: it has far too many fields.
    """
    if has_more_fields(data, kind, SPARE_VALUES):
        raise BodyTooLargeError(f"the message has more than {SPARE_VALUES} fields; a request needs a dozen")
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise BadBodyError(f"not a {kind.DESCRIPTOR.name}: the message is broken or cut off") from error


def read_request(
    model: Ensemble, message: messages.ModelInferRequest, settings: Settings
) -> tuple[InferRequest, Images | list[EncodedImage]]:
    """Read a request and its images: a tensor or files.

    Args:
        settings: limit the number of files and the tensor's values.

    Raises:
        InvalidParametersError: the model cannot answer this request.
        TooManyImagesError: there are too many files.
    """
    try:
        request = InferRequest.model_validate(_to_document(message))
    except ValidationError as error:
        raise InvalidParametersError(describe_faults(error, InferRequest)) from error
    tensor = check_tensors(model, request, settings)
    if tensor.datatype == BYTES:
        return request, _read_images(tensor, message)
    return request, make_batch(tensor, _read_values(tensor, message), settings.max_magnitude)


def write_response(request: InferRequest, answer: Classification) -> messages.ModelInferResponse:
    """Return the response; its tensors are bytes."""
    response = messages.ModelInferResponse(
        model_name=answer.ensemble.name, model_version=answer.ensemble.version, id=request.id or ""
    )
    for name, value in describe_answer(answer).items():
        parameter = response.parameters[name]
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, str):
            parameter.string_param = value
        else:
            parameter.double_param = value
    for wanted, result in make_outputs(request, answer):
        response.outputs.add(name=wanted.name, datatype=result.datatype, shape=result.shape)
        response.raw_output_contents.append(result.to_bytes())
    return response


def to_message(kind: type[M], model: BaseModel) -> M:
    """Convert a response of `/v2` to the message with the same field names."""
    # Older versions of protobuf take lists alone, not tuples.
    return ParseDict(model.model_dump(mode="json"), kind())


def _to_document(message: messages.ModelInferRequest) -> dict[str, Any]:
    """Return the request as the document of its JSON form, without the data."""
    return {
        "id": message.id,
        "parameters": _read_parameters(message.parameters),
        "inputs": [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": _read_parameters(tensor.parameters),
            }
            for tensor in message.inputs
        ],
        "outputs": [
            {"name": output.name, "parameters": _read_parameters(output.parameters)}
            for output in message.outputs
        ],
    }


def _read_parameters(parameters: Mapping[str, messages.InferParameter]) -> dict[str, Any]:
    values = {}
    for name, parameter in parameters.items():
        field = parameter.WhichOneof("parameter_choice")
        values[name] = None if field is None else getattr(parameter, field)
    return values


def _read_values(tensor: Input, message: messages.ModelInferRequest) -> NDArray[np.float32]:
    """Return the input's elements, from the message's raw bytes or from the input's contents."""
    raw = _read_raw(tensor, message, "fp32_contents")
    if raw is not None:
        return read_bytes(tensor, raw, f"raw_input_contents has {len(raw)}")
    numbers = message.inputs[0].contents.fp32_contents
    values = np.empty(len(numbers), FP32)
    # To convert all at once would hold the GIL, and so stop the event loop even from a thread.
    for start in range(0, len(numbers), PIECE_VALUES):
        values[start : start + PIECE_VALUES] = numbers[start : start + PIECE_VALUES]
    return read_bytes(tensor, values.tobytes(), f"fp32_contents has {values.nbytes}")


def _read_images(tensor: Input, message: messages.ModelInferRequest) -> list[EncodedImage]:
    """Return the input's elements, one image file each."""
    raw = _read_raw(tensor, message, "bytes_contents")
    if raw is not None:
        return split_elements(tensor.name, tensor.shape[0], raw)
    files = message.inputs[0].contents.bytes_contents
    if len(files) != tensor.shape[0]:
        raise InvalidParametersError(
            f"input {tensor.name!r}: shape {tensor.shape} of BYTES is {tensor.shape[0]} elements, "
            f"bytes_contents has {len(files)}"
        )
    return [EncodedImage(file) for file in files]


def _read_raw(tensor: Input, message: messages.ModelInferRequest, field: str) -> bytes | None:
    """Return the message's raw bytes; None if the input's elements are in its contents.

    Args:
        field: the field of the contents for the input's type.
    """
    raw = message.raw_input_contents
    fields = [found.name for found, _ in message.inputs[0].contents.ListFields()]
    if raw:
        if len(raw) != 1:
            raise InvalidParametersError(f"raw_input_contents has {len(raw)} tensors; there is one input")
        if fields:
            raise InvalidParametersError(f"input {tensor.name!r} has both contents and raw_input_contents")
        return bytes(raw[0])
    if fields not in ([], [field]):
        raise InvalidParametersError(
            f"input {tensor.name!r}: {tensor.datatype} goes in {field} or raw_input_contents, not in "
            f"{', '.join(fields)}"
        )
    return None
