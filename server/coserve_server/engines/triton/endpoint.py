"""One Triton server: what it has loaded, and calls to it."""

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
from coserve_server.ensembles.triton_config import read_ensemble
from coserve_server.errors import RepositoryError
from coserve_server.observability.record import current

logger = logging.getLogger(__name__)

LOOK_TIMEOUT_S = 1
"""A server that does not say within this time what it has loaded counts as lost."""
NOT_LOADED = "not loaded"
NO_ANSWER = f"did not answer within {LOOK_TIMEOUT_S} s"
# Nothing is wrong with the request: another server may well answer it.
ELSEWHERE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND)


class CallError(Exception):
    """A call failed; `elsewhere` says whether another server may do better."""

    def __init__(self, message: str, elsewhere: bool = False) -> None:
        super().__init__(message)
        self.elsewhere = elsewhere


class Endpoint:
    """A Triton server, known by what it tells over gRPC alone.

    tritonclient's generated stub is used rather than its client class, which hides status codes and leaves
    no call to cancel.

    Attributes:
        address: its HOST:PORT.
        error: why it does not answer; None while it does. At first it has not been asked.
        loaded: name and version of what it has loaded.
        missing: why models that it lists are not loaded, by name.
        ensembles: the ensembles it can run, wholly or in part; kept while it does not answer.
        shares_memory: whether it sees the shared memory region.
    """

    def __init__(
        self, address: str, channel: grpc.aio.Channel, metadata: Metadata, memory: SharedMemory | None
    ) -> None:
        self.address = address
        self.error: str | None = "not asked yet"
        self.loaded: set[tuple[str, str]] = set()
        self.missing: Mapping[str, str] = {}
        self.ensembles: dict[str, Ensemble] = {}
        self.shares_memory = False
        self._channel, self._metadata, self._memory = channel, metadata, memory
        self._stub = GRPCInferenceServiceStub(channel)
        self._described: set[tuple[str, str]] | None = None
        self._configs: Mapping[str, Any] = {}
        self._calls: set[grpc.aio.UnaryUnaryCall[Any, Any]] = set()
        self._dropped: set[grpc.aio.UnaryUnaryCall[Any, Any]] = set()

    def ready(self, member: Member) -> bool:
        """Whether it answers and has the version of the member loaded that the ensemble asks for."""
        if self.error is not None:
            return False
        if member.version is not None:
            return (member.name, str(member.version)) in self.loaded
        return any(name == member.name for name, _ in self.loaded)

    async def look(self) -> None:
        """Ask what is loaded, and for the ensembles' descriptions if that has changed; never raises."""
        try:
            index = await self._ask("RepositoryIndex", messages.RepositoryIndexRequest())
            loaded = {(model.name, model.version) for model in index.models if model.state == "READY"}
            same = loaded == self._described and await self._are_as_described()
            ensembles = self.ensembles if same else await self._describe(loaded)
            if self._memory is not None:
                await self._share(self._memory)
        except CallError as error:
            if self.error is None:
                logger.warning("%s: %s", self.address, error)
            self.error, self.shares_memory, self._described = str(error), False, None
            return
        names = {name for name, _ in loaded}
        self.loaded = loaded
        self.missing = {
            model.name: first_line(model.reason) or NOT_LOADED
            for model in index.models
            if model.name not in names
        }
        if ensembles is not None:
            self.ensembles, self._described = ensembles, loaded
        if self.error is not None:
            logger.info("%s answers", self.address)
        self.error, self.shares_memory = None, self._memory is not None

    async def infer(self, request: messages.ModelInferRequest) -> messages.ModelInferResponse:
        """Run a model; cancelling the caller cancels the call at the server.

        Raises:
            CallError: the server refuses, fails, is not reached, or `drop_calls` gave it up.
        """
        metadata = self._metadata
        if trace := current().traceparent:
            metadata = (*metadata, ("traceparent", trace))
        call = self._stub.ModelInfer(request, metadata=metadata)
        self._calls.add(call)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from error
        except asyncio.CancelledError:
            if call in self._dropped and not _is_cancelled():
                raise CallError(NO_ANSWER, elsewhere=True) from None
            raise
        finally:
            self._calls.discard(call)
            self._dropped.discard(call)

    def drop_calls(self) -> None:
        """Give up what runs, so that it can run elsewhere."""
        for call in self._calls:
            self._dropped.add(call)
            call.cancel()

    async def close(self) -> None:
        """Unregister the shared memory and close the connections."""
        if self.shares_memory and self._memory is not None:
            unregister = f"{self._memory.kind}Unregister"
            try:
                await self._ask(unregister, _message(unregister)(name=self._memory.name))
            except CallError as error:
                logger.warning("%s: shared memory: %s", self.address, error)
        await self._channel.close()

    async def _ask(self, method: str, request: Any) -> Any:
        call = getattr(self._stub, method)
        try:
            return await call(request, metadata=self._metadata, timeout=LOOK_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            raise self._translated(error) from error

    async def _describe(self, loaded: set[tuple[str, str]]) -> dict[str, Ensemble] | None:
        """The ensembles among the loaded models; None where these are just changing.

        An ensemble that Triton unloaded together with one of its members is kept for the others' sake.
        """
        configs = await self._ask_configs({name for name, _ in loaded})
        if configs is None:
            return None
        ensembles = {
            name: ensemble
            for name, ensemble in self.ensembles.items()
            if name not in configs and any(member.name in configs for member in ensemble.members)
        }
        for name, config in configs.items():
            if config.HasField("ensemble_scheduling"):
                version = max((version for model, version in loaded if model == name), key=int)
                try:
                    ensembles[name] = read_ensemble(name, version, configs, f"{self.address}: {name}")
                except RepositoryError as error:
                    # Triton may serve ensembles that have nothing to do with this project.
                    logger.warning("not served: %s", error)
        self._configs = {name: configs[name] for name in ensembles if name in configs}
        return ensembles

    async def _are_as_described(self) -> bool:
        """Whether no ensemble was loaded anew under the version that it had."""
        return await self._ask_configs(self._configs) == self._configs

    async def _ask_configs(self, names: Iterable[str]) -> dict[str, Any] | None:
        """Configurations by name; None where a model is just changing."""
        names = sorted(names)
        asked = [self._ask("ModelConfig", messages.ModelConfigRequest(name=name)) for name in names]
        try:
            answers = await asyncio.gather(*asked)
        except CallError:
            return None
        return {name: answer.config for name, answer in zip(names, answers, strict=True)}

    async def _share(self, memory: SharedMemory) -> None:
        """Make the shared memory known to the server, unless it is."""
        status = f"{memory.kind}Status"
        if memory.name in (await self._ask(status, _message(status)())).regions:
            return
        try:
            await self._ask(f"{memory.kind}Register", memory.registration())
        except CallError as error:
            raise CallError(f"cannot use this machine's shared memory: {error}", elsewhere=True) from error

    def _translated(self, error: grpc.aio.AioRpcError) -> CallError:
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return CallError(NO_ANSWER, elsewhere=True)
        return CallError(first_line(error.details() or error.code().name), error.code() in ELSEWHERE)


def _message(call: str) -> Any:
    """The type of what a call is asked with."""
    return getattr(messages, f"{call}Request")


def first_line(text: str) -> str:
    """The first line of a message that may hold a traceback."""
    return next(iter(text.strip().splitlines()), "")


def _is_cancelled() -> bool:
    """Whether this task itself was cancelled, and not only what it waits for; Python 3.10 cannot tell."""
    task = asyncio.current_task()
    return sys.version_info >= (3, 11) and task is not None and task.cancelling() > 0
