"""Converts batches and logits to and from Triton's gRPC messages.

Protocol: https://github.com/triton-inference-server/server/blob/main/docs/protocol/README.md
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as messages

from coserve_server.engines.base import Images
from coserve_server.engines.triton.endpoint import CallError
from coserve_server.engines.triton.shared_memory import Slot
from coserve_server.ensembles.ensemble import Member

FP32 = np.dtype("<f4")


@dataclass
class MemberRequests:
    """The requests that send one batch to several members.

    Attributes:
        images: the batch.
        slot: its place in shared memory; None if it is not there.
    """

    images: Images
    slot: Slot | None

    @cached_property
    def data(self) -> bytes:
        """The tensor's bytes, made once for all members."""
        return self.images.astype(FP32, copy=False).tobytes()

    def request(self, member: Member, shared: bool) -> messages.ModelInferRequest:
        """Return the request to one member.

        Args:
            shared: whether the member's server has the shared memory registered.
        """
        version = "" if member.version is None else str(member.version)
        request = messages.ModelInferRequest(model_name=member.name, model_version=version)
        tensor = request.inputs.add(name=member.input_name, datatype="FP32", shape=self.images.shape)
        request.outputs.add(name=member.output_name)
        if shared and self.slot is not None:
            tensor.parameters["shared_memory_region"].string_param = self.slot.region
            tensor.parameters["shared_memory_offset"].int64_param = self.slot.offset
            tensor.parameters["shared_memory_byte_size"].int64_param = self.slot.size
        else:
            request.raw_input_contents.append(self.data)
        return request


def read_logits(response: messages.ModelInferResponse, name: str) -> NDArray[np.float32]:
    """Return the output of that name, in the response's shape.

    Raises:
        CallError: the output is missing, is not FP32, or its bytes do not fit its shape.
    """
    for output, data in zip(response.outputs, response.raw_output_contents, strict=False):
        if output.name == name:
            if output.datatype != "FP32":
                raise CallError(f"gave {name!r} as {output.datatype}, not FP32")
            try:
                return np.frombuffer(data, FP32).reshape(tuple(output.shape))
            except ValueError as error:
                raise CallError(f"gave {len(data)} bytes for {name!r} {list(output.shape)}") from error
    raise CallError(f"gave no output {name!r}")
