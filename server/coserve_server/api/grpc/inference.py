"""Answers the Open Inference Protocol's calls as `/v2` does.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/open_inference_grpc.proto
"""

import asyncio
from typing import TypeVar

from google.protobuf.message import Message
from tritonclient.grpc import model_config_pb2 as configurations
from tritonclient.grpc import service_pb2 as messages

from coserve_server.api.grpc.calls import SMALL_BYTES, SMALL_TIMEOUT_S, Call
from coserve_server.api.grpc.messages import parse, read_request, to_message, write_response
from coserve_server.api.requests.admin import check_admin
from coserve_server.api.v2.models import ServerMetadata, describe_config, describe_tensors
from coserve_server.api.v2.repository import check_enabled, describe_repository, load, unload
from coserve_server.api.v2.responses import respond
from coserve_server.api.v2.routes import INLINE_BINARY_BYTES, INLINE_JSON_BYTES, answer_images
from coserve_server.api.v2.statistics import StatisticsList, describe_statistics
from coserve_server.catalogue.control import RepositoryControl
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import InvalidParametersError
from coserve_server.observability.totals import Totals
from coserve_server.pipeline.classifier import Classifier

M = TypeVar("M", bound=Message)


class Inference:
    """The service's calls over one classifier; each returns its response."""

    def __init__(self, core: Classifier, control: RepositoryControl | None, totals: Totals) -> None:
        """Answer with the classifier's ensembles; `control` loads and unloads them."""
        self.core = core
        self._control = control
        self._totals = totals

    async def server_live(self, call: Call) -> messages.ServerLiveResponse:
        """Report that the process is alive."""
        return messages.ServerLiveResponse(live=True)

    async def server_ready(self, call: Call) -> messages.ServerReadyResponse:
        """Report whether every ensemble has its quorum of members."""
        return messages.ServerReadyResponse(ready=not self.core.catalogue.faults())

    async def model_ready(self, call: Call) -> messages.ModelReadyResponse:
        """Report whether a model has its quorum of members."""
        request = await receive(messages.ModelReadyRequest, call)
        ready = self.core.catalogue.ready(self.find(call, request.name, request.version))
        return messages.ModelReadyResponse(ready=ready)

    async def server_metadata(self, call: Call) -> messages.ServerMetadataResponse:
        """Describe the server and the protocol extensions that it supports."""
        return to_message(messages.ServerMetadataResponse, ServerMetadata())

    async def model_metadata(self, call: Call) -> messages.ModelMetadataResponse:
        """Describe a model's versions and tensors."""
        request = await receive(messages.ModelMetadataRequest, call)
        model = self.find(call, request.name, request.version)
        versions = [one.version for one in self.core.catalogue.versions(model.name)]
        described = describe_tensors(model, versions, announce_files=self.core.settings.announce_files)
        return to_message(messages.ModelMetadataResponse, described)

    async def model_config(self, call: Call) -> messages.ModelConfigResponse:
        """Return a model's configuration, as Triton would."""
        request = await receive(messages.ModelConfigRequest, call)
        settings = self.core.settings
        model = self.find(call, request.name, request.version)
        described = describe_config(model, settings.max_images, announce_files=settings.announce_files)
        config = to_message(configurations.ModelConfig, described)
        return messages.ModelConfigResponse(config=config)

    async def model_statistics(self, call: Call) -> messages.ModelStatisticsResponse:
        """Report the counters since the start of one model, or of all if the request names none."""
        request = await receive(messages.ModelStatisticsRequest, call)
        models = (
            [self.find(call, request.name, request.version)] if request.name else self.core.catalogue.models()
        )
        totals = await self._totals.statistics()
        statistics = [describe_statistics(model, totals.get(model)) for model in models]
        return to_message(messages.ModelStatisticsResponse, StatisticsList(model_stats=statistics))

    async def repository_index(self, call: Call) -> messages.RepositoryIndexResponse:
        """List the models that a request may name, those that could not be loaded, and those unloaded."""
        request = await receive(messages.RepositoryIndexRequest, call)
        _check_repository(request.repository_name)
        models = describe_repository(self.core, ready_only=request.ready)
        return messages.RepositoryIndexResponse(
            models=[to_message(messages.RepositoryIndexResponse.ModelIndex, model) for model in models]
        )

    async def repository_model_load(self, call: Call) -> messages.RepositoryModelLoadResponse:
        """Load an ensemble from its files in the repository, and respond once it is served."""
        control = self._authorize(call)
        request = await receive(messages.RepositoryModelLoadRequest, call)
        _check_repository(request.repository_name)
        await load(control, request.model_name, request.parameters)
        return messages.RepositoryModelLoadResponse()

    async def repository_model_unload(self, call: Call) -> messages.RepositoryModelUnloadResponse:
        """Stop serving an ensemble; requests in progress still get their answers."""
        control = self._authorize(call)
        request = await receive(messages.RepositoryModelUnloadRequest, call)
        _check_repository(request.repository_name)
        await unload(control, request.model_name, request.parameters)
        return messages.RepositoryModelUnloadResponse()

    async def model_infer(self, call: Call) -> messages.ModelInferResponse:
        """Return the averaged logits of preprocessed images."""
        with self.core.admitted(call.record):
            settings = self.core.settings
            data = await call.receive(settings.upload_timeout_ms / 1000, settings.max_body_bytes)
            message = await self.parse(data)
            return await self.answer(call, message, len(data))

    async def parse(self, data: bytes) -> messages.ModelInferRequest:
        """Parse a request for inference.

        Raises:
            BadBodyError, BodyTooLargeError: see `messages.parse`.
        """
        if len(data) <= INLINE_BINARY_BYTES:
            return parse(messages.ModelInferRequest, data)
        return await asyncio.to_thread(parse, messages.ModelInferRequest, data)

    async def answer(
        self, call: Call, message: messages.ModelInferRequest, size: int
    ) -> messages.ModelInferResponse:
        """Answer a request for inference that has been admitted.

        Args:
            size: size of the encoded message in bytes.

        Raises:
            RequestError: the request cannot be answered.
        """
        model = self.find(call, message.model_name, message.model_version)
        if size <= (INLINE_BINARY_BYTES if message.raw_input_contents else INLINE_JSON_BYTES):
            wanted, images = read_request(model, message, self.core.settings)
        else:
            wanted, images = await asyncio.to_thread(read_request, model, message, self.core.settings)
        limits = [limit for limit in (call.timeout_ns(), wanted.parameters.timeout * 1000) if limit]
        timeout_ns = min(limits, default=None)
        answer = await answer_images(self.core, call.record, model, images, timeout_ns, wanted)
        return await respond(write_response, wanted, answer)

    def find(self, call: Call, name: str, version: str) -> Ensemble:
        """Return the model that a message names, and note it in the call's record.

        Raises:
            UnknownModelError, InvalidParametersError, NoQuorumError: see `Catalogue.ensemble`.
        """
        model = self.core.catalogue.ensemble(name, version or None)
        call.record.ensemble = model
        return model

    def _authorize(self, call: Call) -> RepositoryControl:
        """Return what loads and unloads models, if the client may load and unload models.

        Raises:
            NotEnabledError: this server does not load and unload models.
            ForbiddenError: the client may not.
        """
        check_enabled(self.core)
        check_admin(self.core.settings, call.key, from_browser="origin" in call.metadata)
        assert self._control is not None
        return self._control


async def receive(kind: type[M], call: Call) -> M:
    """Receive a small message.

    Raises:
        BadBodyError, BodyTooLargeError, UploadTimeoutError: see `Call.receive` and `parse`.
    """
    return parse(kind, await call.receive(SMALL_TIMEOUT_S, SMALL_BYTES))


def _check_repository(name: str) -> None:
    if name:
        raise InvalidParametersError("repository_name is not supported; there is one repository")
