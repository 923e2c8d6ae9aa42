"""Inference requests as JSON has them.

What `json_schema_extra` adds is checked against the model, for a better message.
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictInt

from coserve_server.settings import EarlyStop

Int64 = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
"""The protocol's integers; JSON itself does not limit them."""


def _or_empty(value: object) -> object:
    """Replace null, which some clients send for a missing object."""
    return {} if value is None else value


def _omit_defaults(schema: dict[str, Any]) -> None:
    for field in schema["properties"].values():
        field.pop("default", None)


class _Part(BaseModel):
    """A part of a request; its schema names no defaults, since openapi-typescript requires such fields."""

    model_config = ConfigDict(json_schema_extra=_omit_defaults)


class InputParameters(_Part):
    """Parameters of an input."""

    binary_data_size: (
        Annotated[Int64, Field(ge=0)] | Annotated[str, Field(pattern=r"^[0-9]{1,9}(,[0-9]{1,9})*$")] | None
    ) = Field(
        default=None,
        description="Bytes of the binary tensor; for image files without their lengths, the size of each.",
    )
    shared_memory_region: Any = None


class OutputParameters(_Part):
    """Parameters of an output."""

    binary_data: StrictBool | None = None
    classification: Annotated[Int64, Field(ge=1)] | None = Field(
        default=None, description="Number of largest elements to return, as `value:index:label`."
    )
    shared_memory_region: Any = None


class RequestParameters(_Part, extra="allow"):
    """Parameters of a request; the protocol lets clients add their own."""

    early_stop: EarlyStop | None = Field(
        default=None,
        description="When images need no further member once their answer is confident enough; the server's "
        "setting if omitted.",
    )
    binary_data_output: StrictBool = Field(default=False, description="Whether outputs are bytes, not JSON.")
    priority: Int64 = Field(
        default=0, description="Only 0; there are no priorities.", json_schema_extra={"enum": [0]}
    )
    timeout: Annotated[Int64, Field(ge=0)] = Field(default=0, description="Microseconds; 0 for no limit.")


class Input(_Part):
    """A tensor, with its elements in `data` or after the JSON."""

    name: str
    shape: list[Int64] = Field(fail_fast=True, json_schema_extra={"minItems": 1})
    datatype: str = Field(json_schema_extra={"enum": ["FP32", "BYTES"]})
    parameters: Annotated[InputParameters, BeforeValidator(_or_empty)] = InputParameters()
    data: list[Any] | None = None


class Output(_Part):
    """A requested tensor."""

    name: str
    parameters: Annotated[OutputParameters, BeforeValidator(_or_empty)] = OutputParameters()


class InferRequest(_Part):
    """An inference request."""

    id: str | None = None
    # Stop at the first fault: a report of all could be many times as large as the body.
    inputs: list[Input] = Field(fail_fast=True, json_schema_extra={"minItems": 1, "maxItems": 1})
    outputs: list[Output] | None = Field(default=None, fail_fast=True)
    parameters: Annotated[RequestParameters, BeforeValidator(_or_empty)] = RequestParameters()
