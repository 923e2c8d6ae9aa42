"""A gRPC server that answers as Triton does, and fails in ways that Triton cannot be made to fail in."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from tests.server.onnx_repository import read_config

Answer = Callable[[messages.ModelInferRequest], messages.ModelInferResponse]


def logits(request: messages.ModelInferRequest, values: Any, datatype: str = "FP32") -> Any:
    """Return a response with `values` as the requested output."""
    array = np.asarray(values, np.float32)
    response = messages.ModelInferResponse(model_name=request.model_name, model_version="1")
    response.outputs.add(name=request.outputs[0].name, datatype=datatype, shape=array.shape)
    response.raw_output_contents.append(array.tobytes())
    return response


def zeros(request: messages.ModelInferRequest) -> messages.ModelInferResponse:
    return logits(request, np.zeros((request.inputs[0].shape[0], 4)))


class FakeTriton(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Serves a repository's configurations; models return zeros unless `answers` has something else.

    Attributes:
        loaded: names of the loaded models.
        answers: functions that make a model's response, by name.
        hanging: names of models that never answer.
        awake: the server answers only while this is set.
        cancelled: names of models whose calls were cancelled.
        requests: the inference requests received.
        tokens: the `authorization` of each call.
        traces: the `traceparent` of each call.
        inferences: model and `traceparent` of each inference.
    """

    def __init__(self, repository: Path) -> None:
        self.configs = {folder.name: read_config(folder) for folder in sorted(repository.iterdir())}
        self.loaded = set(self.configs)
        self.versions: dict[str, list[str]] = {}
        self.reasons: dict[str, str] = {}
        self.answers: dict[str, Answer] = {}
        self.hanging: set[str] = set()
        self.awake = asyncio.Event()
        self.awake.set()
        self.cancelled: list[str] = []
        self.requests: list[messages.ModelInferRequest] = []
        self.regions: dict[str, str | bytes] = {}
        self.tokens: set[str | None] = set()
        self.traces: set[str | None] = set()
        self.inferences: list[tuple[str, str | None]] = []
        self.described = 0

    async def start(self, address: str = "127.0.0.1:0", credentials: Any = None) -> str:
        """Listen, and return the address."""
        self.server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_GRPCInferenceServiceServicer_to_server(self, self.server)
        if credentials:
            port = self.server.add_secure_port(address, credentials)
        else:
            port = self.server.add_insecure_port(address)
        await self.server.start()
        return f"{address.rpartition(':')[0]}:{port}"

    async def stop(self) -> None:
        """Stop listening, and break all connections."""
        self.awake.set()
        await self.server.stop(grace=None)

    async def RepositoryIndex(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._enter(context)
        index = messages.RepositoryIndexResponse()
        for name in self.configs:
            loaded = name in self.loaded
            state = "READY" if loaded else "UNAVAILABLE" if name in self.reasons else ""
            for version in self.versions.get(name, ["1"]) if state else [""]:
                index.models.add(name=name, version=version, state=state, reason=self.reasons.get(name, ""))
        return index

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._enter(context)
        # Count descriptions of members: ensembles are also described to find out whether they changed.
        self.described += not self.configs[request.name].HasField("ensemble_scheduling")
        if request.name not in self.loaded:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{request.name}'")
        return messages.ModelConfigResponse(config=self.configs[request.name])

    async def SystemSharedMemoryStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        return self._with_regions(messages.SystemSharedMemoryStatusResponse())

    async def SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.regions[request.name] = request.key
        return messages.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:  # noqa: N802
        del self.regions[request.name]
        return messages.SystemSharedMemoryUnregisterResponse()

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        metadata = dict(context.invocation_metadata())
        self.inferences.append((request.model_name, metadata.get("traceparent")))
        try:
            await self._enter(context)
            if request.model_name in self.hanging:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.append(request.model_name)
            raise
        if request.model_name not in self.loaded:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model: '{request.model_name}'")
        return self.answers.get(request.model_name, zeros)(request)

    def _with_regions(self, status: Any) -> Any:
        for name in self.regions:
            status.regions[name].name = name
        return status

    async def _enter(self, context: Any) -> None:
        metadata = dict(context.invocation_metadata())
        self.tokens.add(metadata.get("authorization"))
        self.traces.add(metadata.get("traceparent"))
        await self.awake.wait()
