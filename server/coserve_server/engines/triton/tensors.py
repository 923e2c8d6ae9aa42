"""Batches and logits as Triton's gRPC messages.

Protocol: https://github.com/triton-inference-server/server/blob/main/docs/protocol/README.md
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as messages

from coserve_server.engines.base import Batch
from coserve_server.engines.triton.endpoint import CallError
from coserve_server.engines.triton.shared_memory import Place
from coserve_server.ensembles.ensemble import Member

FP32 = np.dtype("<f4")


@dataclass
class Outgoing:
    """A batch on its way to several members; `place` says where it lies in shared memory, if it does."""

    batch: Batch
    place: Place | None

    @cached_property
    def data(self) -> bytes:
        """The tensor's bytes, made once for all members."""
        return self.batch.astype(FP32, copy=False).tobytes()

    def request(self, member: Member, shared: bool) -> messages.ModelInferRequest:
        """Ask one member for its logits; `shared` says whether its server sees the shared memory."""
        version = "" if member.version is None else str(member.version)
        request = messages.ModelInferRequest(model_name=member.name, model_version=version)
        tensor = request.inputs.add(name=member.input_name, datatype="FP32", shape=self.batch.shape)
        request.outputs.add(name=member.output_name)
        if shared and self.place is not None:
            tensor.parameters["shared_memory_region"].string_param = self.place.region
            tensor.parameters["shared_memory_offset"].int64_param = self.place.offset
            tensor.parameters["shared_memory_byte_size"].int64_param = self.place.size
        else:
            request.raw_input_contents.append(self.data)
        return request


def read_logits(response: messages.ModelInferResponse, name: str) -> NDArray[np.float32]:
    """The output of that name, of the shape the answer gives.

    Raises:
        CallError: it is missing, not FP32, or has not as many bytes as its shape needs.
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
