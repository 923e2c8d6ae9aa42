"""Answers the requests of a stream, several at once, in their order."""

import asyncio

import grpc.aio
from tritonclient.grpc import service_pb2 as messages

from coserve_server.api.grpc.calls import Call, Calls
from coserve_server.api.grpc.compression import decompress_message
from coserve_server.api.grpc.errors import STOPPING, Fault
from coserve_server.api.grpc.inference import Inference
from coserve_server.pipeline.admission import Admission

WINDOW = 16
"""Requests of one stream that are in progress, or wait for an earlier one's answer; more are not read yet."""
STRICT = "triton_grpc_error"
"""Metadata `true` under this name makes a request's error end its stream, as with Triton."""


class Streams:
    """The calls of `ModelStreamInfer`."""

    def __init__(self, calls: Calls, inference: Inference) -> None:
        """Answer each request as `inference` does."""
        settings = inference.core.settings
        self._calls = calls
        self._inference = inference
        # Each stream may hold a part of a message in memory.
        self._open = Admission(settings.max_requests, settings.deadline_ms / 1000)
        self._readers: set[asyncio.Task[None]] = set()

    async def model_stream_infer(self, call: Call) -> Fault | None:
        """Answer a stream's requests until the client ends it; a request's error does not end it.

        Raises:
            OverloadedError: too many streams are open.
        """
        with self._open.admitted():
            stream = _Stream(call, self._calls, self._inference)
            reader = asyncio.ensure_future(stream.read())
            self._readers.add(reader)
            try:
                fault = await stream.write()
                return STOPPING if fault is None and reader.cancelled() else fault
            finally:
                self._readers.discard(reader)
                for task in (reader, *stream.pending):
                    task.cancel()

    def stop(self) -> None:
        """Read no more requests; streams end once the requests already read have been answered."""
        for reader in self._readers:
            reader.cancel()


class _Stream:
    """One stream.

    Attributes:
        pending: requests that have been read and not been answered.
    """

    def __init__(self, call: Call, calls: Calls, inference: Inference) -> None:
        self.pending: set[asyncio.Task[messages.ModelStreamInferResponse | Fault]] = set()
        self._call = call
        self._calls = calls
        self._inference = inference
        self._strict = call.metadata.get(STRICT) == "true"
        self._answers: asyncio.Queue[asyncio.Task[messages.ModelStreamInferResponse | Fault] | None] = (
            asyncio.Queue()
        )
        self._room = asyncio.Semaphore(WINDOW)

    async def read(self) -> None:
        """Start to answer each request as it arrives."""
        number = 0
        try:
            while True:
                await self._room.acquire()
                data = await self._call.context.read()
                if data is grpc.aio.EOF:
                    return
                number += 1
                task = asyncio.ensure_future(self._answer(number, data))
                self.pending.add(task)
                self._answers.put_nowait(task)
        finally:
            self._answers.put_nowait(None)

    async def write(self) -> Fault | None:
        """Write the answers in the order of the requests; return the fault that ends the stream."""
        while (task := await self._answers.get()) is not None:
            answer = await task
            self.pending.discard(task)
            if isinstance(answer, Fault):
                return answer
            await self._call.write(answer)
            self._room.release()
        return None

    async def _answer(self, number: int, data: bytes) -> messages.ModelStreamInferResponse | Fault:
        """Return a message with the response, or with an error; or the fault that ends the stream."""
        call = self._calls.begin_message(self._call, number)
        request = messages.ModelInferRequest()

        async def infer() -> messages.ModelInferResponse:
            nonlocal request
            with self._inference.core.admitted(call.record):
                message = await decompress_message(data, self._inference.core.settings.max_body_bytes)
                request = await self._inference.parse(message)
                return await self._inference.answer(call, request, len(message))

        answer = await self._calls.attempt(call, infer())
        if isinstance(answer, Fault) and self._strict:
            return answer
        return _write(answer, request.id)


def _write(answer: messages.ModelInferResponse | Fault, request_id: str) -> messages.ModelStreamInferResponse:
    if not isinstance(answer, Fault):
        return messages.ModelStreamInferResponse(infer_response=answer)
    # Clients tell by the id which of their requests failed.
    failed = messages.ModelInferResponse(id=request_id)
    return messages.ModelStreamInferResponse(error_message=answer.text, infer_response=failed)
