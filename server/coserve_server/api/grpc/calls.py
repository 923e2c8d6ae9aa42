"""Runs calls: keeps their records, authenticates clients, answers errors, and reports outcomes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import Message

from coserve_server.api.grpc.compression import decompress_message
from coserve_server.api.grpc.errors import INTERNAL, OWN_FAULTS, Fault, clip, describe_error
from coserve_server.api.problems import note_problem
from coserve_server.api.reporting import Outcome, Reporter, check_id
from coserve_server.api.requests.authentication import authenticate
from coserve_server.api.requests.timeouts import timeout
from coserve_server.errors import BadBodyError, BodyTooLargeError, RequestError, UploadTimeoutError
from coserve_server.observability.record import REQUEST_ID, Record
from coserve_server.security.key_ring import KeyRing
from coserve_server.security.keys import ApiKey

logger = logging.getLogger(__name__)

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
T = TypeVar("T")

SMALL_BYTES = 2**16
"""Limit on the size of messages other than inference requests."""
SMALL_TIMEOUT_S = 5
"""Time limit for receiving such messages, since the number of these calls is not limited."""
ANSWER_MARGIN_S = 0.02
"""Margin before a client's deadline, at most a tenth of the time left, so that the answer arrives in time."""
_ID = REQUEST_ID.lower()
_KEYS = ("authorization", "x-api-key")


@dataclass
class Call:
    """A call, or one message of a stream.

    Attributes:
        method: `/service/method`, as the client named it.
        route: the same, or `UNMATCHED`.
        metadata: text values by lower-case name.
        client: the client's address, if it is known.
        key: the API key's record; None if the call needs none.
    """

    context: Context
    record: Record
    method: str
    route: str
    metadata: Mapping[str, str]
    client: str | None
    key: ApiKey | None = None

    async def receive(self, timeout_s: float, max_bytes: int) -> bytes:
        """Return the call's only message.

        Args:
            max_bytes: limit on its size, before and after decompression.

        Raises:
            UploadTimeoutError: it does not arrive in time.
            BodyTooLargeError: it is too large.
            BadBodyError: the client sends none, or its compressed data is broken.
        """
        message = await self.receive_next(timeout_s, max_bytes)
        if message is None:
            # If gRPC has ended the call, as it does if a message is too large, this task is cancelled here.
            await asyncio.sleep(0)
            raise BadBodyError("the call has no message")
        self.record.received_ns = time.perf_counter_ns()
        return message

    async def receive_next(self, timeout_s: float, max_bytes: int) -> bytes | None:
        """Return a stream's next message; None at its end.

        Raises:
            UploadTimeoutError, BodyTooLargeError, BadBodyError: see `receive`.
        """
        try:
            async with timeout(timeout_s):
                message = await self.context.read()
        except asyncio.TimeoutError as error:
            raise UploadTimeoutError(f"the message took longer than {timeout_s * 1000:g} ms") from error
        if message is grpc.aio.EOF:
            return None
        if len(message) > max_bytes:
            raise BodyTooLargeError(f"the message has more than the {max_bytes} bytes allowed")
        return await decompress_message(message, max_bytes)

    async def write(self, message: Message) -> None:
        """Send a stream's next message.

        Raises:
            CancelledError: the client is gone, which gRPC may notice only here.
        """
        try:
            await self.context.write(message)
        except grpc.aio.InternalError as error:
            raise asyncio.CancelledError from error

    def time_left_ns(self) -> int | None:
        """Return the time left for the answer, in nanoseconds; None if the client sets no deadline."""
        left_s = self.context.time_remaining()
        if left_s is None:
            return None
        return max(1, round((left_s - min(ANSWER_MARGIN_S, left_s / 10)) * 1e9))

    def timeout_ns(self) -> int | None:
        """Return the time left for the answer, but counted from the message's arrival, as deadlines are."""
        left_ns = self.time_left_ns()
        return None if left_ns is None else left_ns + time.perf_counter_ns() - self.record.received_ns


Answer = Callable[[Call], Awaitable[Message | Fault | None]]
"""Answers a call: returns the response, the fault that ends the call, or None after a stream."""


class Calls:
    """Runs the functions that answer calls; these may raise request errors."""

    def __init__(self, reporter: Reporter, keys: KeyRing | None) -> None:
        """Report every call; require one of the keys, if there are any."""
        self._reporter = reporter
        self._keys = keys

    async def run(
        self, context: Context, method: str, route: str, answer: Answer, *, is_open: bool
    ) -> Message | None:
        """Run a call from its metadata to its end.

        Args:
            is_open: whether the call needs no key.
        """
        metadata = {
            name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)
        }
        record = self._reporter.begin(check_id(metadata.get(_ID, "")), f"GRPC {method}", metadata)
        call = Call(context, record, method, route, metadata, _read_address(context.peer()))
        trailers = [(_ID, record.id)]
        if record.traceparent is not None:
            trailers.append(("traceresponse", record.traceparent))
        # Initial metadata would cost an additional message.
        context.set_trailing_metadata(tuple(trailers))

        async def authenticated() -> Message | Fault | None:
            if self._keys is not None and not is_open:
                headers = {name.encode(): metadata[name].encode() for name in _KEYS if name in metadata}
                call.key = await authenticate(self._keys, headers)
            return await answer(call)

        result = await self.attempt(call, authenticated())
        if isinstance(result, Fault):
            await context.abort(result.code, result.text, (*trailers, *result.trailers))
        return result

    def begin_message(self, call: Call, number: int) -> Call:
        """Return a call for one message of a stream; it begins now."""
        record = self._reporter.begin(f"{call.record.id}/{number}", f"GRPC {call.method}", call.metadata)
        record.received_ns = record.began_ns
        return replace(call, record=record)

    async def attempt(self, call: Call, answer: Awaitable[T]) -> T | Fault:
        """Await an answer, turn its errors into faults, and report its outcome.

        If the answer is None, nothing is reported: a stream's messages have been reported one by one.
        """
        code = grpc.StatusCode.OK
        fault: Fault | None = None
        result: T | Fault | None = None
        try:
            result = await answer
            if isinstance(result, Fault):
                fault = result
        except RequestError as error:
            fault = describe_error(error)
        except asyncio.CancelledError:
            late = call.context.time_remaining() == 0
            code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
            raise
        except Exception:
            logger.exception("a call failed")
            fault = INTERNAL
        finally:
            if fault is not None:
                fault = fault._replace(text=clip(fault.text))
                note_problem(call.record, fault.kind, fault.text)
                code = fault.code
            if result is not None or code is not grpc.StatusCode.OK:
                self._report(call, code)
        return result if fault is None else fault  # type: ignore[return-value]  # an answer may be None

    def _report(self, call: Call, code: grpc.StatusCode) -> None:
        service, _, method = call.method.removeprefix("/").rpartition("/")
        outcome = Outcome(
            method="GRPC",
            path=call.method,
            route=call.route,
            status=code.name,
            failed=code in OWN_FAULTS,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "rpc.grpc.status_code": code.value[0],
            },
            client=call.client,
            key=call.key.name if call.key else None,
        )
        self._reporter.end(call.record, outcome, time.perf_counter_ns())


def _read_address(peer: str) -> str | None:
    """Return the address in gRPC's name of a client, such as `ipv6:%5B::1%5D:50000`."""
    address, _, _ = unquote(peer.partition(":")[2]).rpartition(":")
    return address.strip("[]") or None
