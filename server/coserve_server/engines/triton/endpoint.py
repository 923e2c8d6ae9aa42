"""One Triton server: the models it has loaded, and calls to it."""

import asyncio
import logging
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import grpc.aio
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from coserve_server.engines.triton.channel import Metadata
from coserve_server.engines.triton.shared_memory import SharedMemory
from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.ensembles.triton_config import is_for_coserve, read_ensemble
from coserve_server.errors import RepositoryError, first_line

logger = logging.getLogger(__name__)

LOOK_TIMEOUT_S = 1
"""A server that does not list its models within this time counts as lost."""
NOT_LOADED = "not loaded"
NO_ANSWER = f"did not answer within {LOOK_TIMEOUT_S} s"
# Nothing is wrong with the request: another server may answer it.
ELSEWHERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND)


class CallError(Exception):
    """A call failed.

    Attributes:
        elsewhere: whether another server may succeed.
    """

    def __init__(self, message: str, elsewhere: bool = False) -> None:
        super().__init__(message)
        self.elsewhere = elsewhere


class Endpoint:
    """A Triton server, known only through its gRPC service.

    It uses tritonclient's generated stub: the client class hides status codes and calls to cancel.

    Attributes:
        address: HOST:PORT.
        error: why the server does not answer; None while it does.
        loaded: name and version of each loaded model.
        missing: why models that the server lists are not loaded, by name.
        refused: what is wrong with ensembles that the server has loaded, by name; begins with the address.
        ensembles: the ensembles that the server can run, wholly or in part; kept while it does not answer.
        shares_memory: whether the server has the shared memory registered.
    """

    def __init__(
        self, address: str, channel: grpc.aio.Channel, metadata: Metadata, memory: SharedMemory | None
    ) -> None:
        self.address = address
        self.error: str | None = "not polled yet"
        self.loaded: set[tuple[str, str]] = set()
        self.missing: Mapping[str, str] = {}
        self.refused: Mapping[str, str] = {}
        self.ensembles: dict[str, Ensemble] = {}
        self.shares_memory = False
        self._channel = channel
        self._metadata = metadata
        self._memory = memory
        self._stub = GRPCInferenceServiceStub(channel)
        self._described: set[tuple[str, str]] | None = None
        self._configs: Mapping[str, Any] = {}
        self._calls: set[grpc.aio.UnaryUnaryCall[Any, Any]] = set()
        self._dropped: set[grpc.aio.UnaryUnaryCall[Any, Any]] = set()

    def ready(self, member: Member) -> bool:
        """Return whether the server answers and has loaded the member in the ensemble's version."""
        if self.error is not None:
            return False
        if member.version is not None:
            return (member.name, str(member.version)) in self.loaded
        return any(name == member.name for name, _ in self.loaded)

    async def refresh(self) -> None:
        """Ask for the loaded models, and for their configurations if these changed; never raises."""
        try:
            index = await self._ask("RepositoryIndex", messages.RepositoryIndexRequest())
            loaded = {(model.name, model.version) for model in index.models if model.state == "READY"}
            same = loaded == self._described and await self._unchanged()
            ensembles = self.ensembles if same else await self._describe(loaded)
            if self._memory is not None:
                await self._share(self._memory)
        except CallError as error:
            if self.error is None:
                logger.warning("%s: %s", self.address, error)
            self.error = str(error)
            self.shares_memory = False
            self._described = None
            return
        names = {name for name, _ in loaded}
        self.loaded = loaded
        self.missing = {
            model.name: first_line(model.reason) or NOT_LOADED
            for model in index.models
            if model.name not in names
        }
        if ensembles is not None:
            self.ensembles = ensembles
            self._described = loaded
        if self.error is not None:
            logger.info("%s answers", self.address)
        self.error = None
        self.shares_memory = self._memory is not None

    async def infer(
        self, request: messages.ModelInferRequest, traceparent: str | None = None
    ) -> messages.ModelInferResponse:
        """Run a model; cancelling the caller cancels the call at the server.

        Args:
            traceparent: the trace and span that the server's spans belong to (W3C Trace Context).

        Raises:
            CallError: the server refuses, fails or is unreachable, or `drop_calls` cancelled the call.
        """
        metadata = self._metadata
        if traceparent is not None:
            metadata = (*metadata, ("traceparent", traceparent))
        call = self._stub.ModelInfer(request, metadata=metadata)
        self._calls.add(call)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise _translate(error) from error
        except asyncio.CancelledError:
            if call in self._dropped and not _is_cancelled():
                raise CallError(NO_ANSWER, elsewhere=True) from None
            raise
        finally:
            self._calls.discard(call)
            self._dropped.discard(call)

    def drop_calls(self) -> None:
        """Cancel running calls, so that other servers can take them."""
        for call in self._calls:
            self._dropped.add(call)
            call.cancel()

    async def close(self) -> None:
        """Unregister the shared memory and close the connections."""
        if self.shares_memory and self._memory is not None:
            request = messages.SystemSharedMemoryUnregisterRequest(name=self._memory.name)
            try:
                await self._ask("SystemSharedMemoryUnregister", request)
            except CallError as error:
                logger.warning("%s: shared memory: %s", self.address, error)
        await self._channel.close()

    async def _ask(self, method: str, request: Any) -> Any:
        call = getattr(self._stub, method)
        try:
            return await call(request, metadata=self._metadata, timeout=LOOK_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise _translate(error) from error

    async def _describe(self, loaded: set[tuple[str, str]]) -> dict[str, Ensemble] | None:
        """Return the ensembles among the loaded models; None while the models are changing.

        An ensemble that Triton unloaded together with one member is kept, since the others still run.
        """
        configs = await self._ask_configs({name for name, _ in loaded})
        if configs is None:
            return None
        ensembles = {
            name: ensemble
            for name, ensemble in self.ensembles.items()
            if name not in configs and any(member.name in configs for member in ensemble.members)
        }
        refused: dict[str, str] = {}
        compared: set[str] = set()
        for name, config in configs.items():
            if config.HasField("ensemble_scheduling"):
                compared.add(name)
                version = max((version for model, version in loaded if model == name), key=int)
                try:
                    ensembles[name] = read_ensemble(name, version, configs, f"{self.address}: {name}")
                except RepositoryError as error:
                    logger.warning("not served: %s", error)
                    if is_for_coserve(config):
                        refused[name] = str(error)
                    # The repair may be in a member's configuration.
                    compared.update(step.model_name for step in config.ensemble_scheduling.step)
        self.refused = refused
        self._configs = {name: config for name, config in configs.items() if name in compared}
        return ensembles

    async def _unchanged(self) -> bool:
        """Return whether no ensemble was reloaded under its old version, whether it was read or refused."""
        return await self._ask_configs(self._configs) == self._configs

    async def _ask_configs(self, names: Iterable[str]) -> dict[str, Any] | None:
        """Return configurations by name; None while a model is changing."""
        names = sorted(names)
        asked = [self._ask("ModelConfig", messages.ModelConfigRequest(name=name)) for name in names]
        try:
            answers = await asyncio.gather(*asked)
        except CallError:
            return None
        return {name: answer.config for name, answer in zip(names, answers, strict=True)}

    async def _share(self, memory: SharedMemory) -> None:
        """Register the shared memory with the server, unless it is registered."""
        status = await self._ask("SystemSharedMemoryStatus", messages.SystemSharedMemoryStatusRequest())
        if memory.name in status.regions:
            return
        try:
            await self._ask("SystemSharedMemoryRegister", memory.registration())
        except CallError as error:
            raise CallError(f"cannot use this machine's shared memory: {error}", elsewhere=True) from error


def _translate(error: grpc.aio.AioRpcError) -> CallError:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return CallError(NO_ANSWER, elsewhere=True)
    return CallError(first_line(error.details() or error.code().name), error.code() in ELSEWHERE)


def _is_cancelled() -> bool:
    """Return whether this task itself was cancelled, not only its call; Python 3.10 cannot tell."""
    task = asyncio.current_task()
    return sys.version_info >= (3, 11) and task is not None and task.cancelling() > 0
