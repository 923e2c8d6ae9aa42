"""What one connection may cost beside the requests that the application sees.

uvicorn ends idle connections, by its keep-alive timeout, but waits for ever for the rest of a request's head,
and for a client that does not read its answer.
"""

import asyncio
import logging
import socket
import sys
from collections import Counter
from http import HTTPStatus
from uuid import uuid4

from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from coserve_server.api.problems import MEDIA_TYPE, Problem
from coserve_server.observability.metrics import Metrics
from coserve_server.settings import Settings

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 16 * 2**10
"""Of a request's address and its headers together."""
TOO_LARGE = (431, "head-too-large", f"more than {MAX_HEAD_BYTES} bytes of headers")
UNREAD_ANSWER_MS = 60_000
"""How long a client may take nothing of an answer that waits for it."""


def limited(settings: Settings, metrics: Metrics) -> type[HttpToolsProtocol]:
    """Make the class of connections that keeps to the settings, for `uvicorn.Config(http=…)`.

    Args:
        metrics: counts the requests refused here, which the application never sees.
    """

    class Limited(Connection):
        head_timeout_s = settings.head_timeout_ms / 1000
        max_connections = settings.max_connections
        refusals = metrics.connections_refused

    return Limited


class _HeadError(Exception):
    """A request's head is well formed, and still not taken; the arguments are those of a problem."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, with an end to slow heads and unread answers; broken ones get problem documents."""

    head_timeout_s: float
    max_connections: int
    refusals: Counter[str]
    """By the kind of problem."""
    _late: asyncio.TimerHandle | None = None
    _bytes_without_body = 0
    _resuming = False
    """Whether a parser reads anew the head of a request that goes on without its upgrade."""
    _unparsed: bytes | None = None
    """What came behind that head."""
    _received = b""
    _answering: RequestResponseCycle | None = None
    """The request that is being answered; `cycle` is the one read last, and `pipeline` has those between."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Wait for the first head, or refuse a connection beyond the limit."""
        super().connection_made(transport)
        # Where the system has it, which is Linux; it covers a window that stays closed too (tcp(7)).
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            own = transport.get_extra_info("socket")
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_ANSWER_MS)
        if len(self.connections) > self.max_connections:
            self._refuse(
                503, "overloaded", f"{self.max_connections} connections are open, as many as are allowed"
            )
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request; heads, and what stands after and between chunks, must come to an end."""
        if self.transport.is_closing():
            return
        self._bytes_without_body += len(data)
        self._unparsed = data
        while self._unparsed is not None:
            self._received, self._unparsed = self._unparsed, None
            super().data_received(self._received)
        self._received = b""
        if self.transport.is_closing():
            return
        if self._bytes_without_body > MAX_HEAD_BYTES:
            self._refuse(*TOO_LARGE)
        elif self._is_idle():
            # An empty line may stand before a request. To uvicorn it ends the wait for one.
            self._await_head()

    def on_body(self, body: bytes) -> None:
        """Pass a piece of the body on."""
        self._bytes_without_body = 0
        super().on_body(body)

    def on_message_begin(self) -> None:
        """Give the head its time, from its first byte."""
        super().on_message_begin()
        if self._late is None:
            self._await_head()

    def on_headers_complete(self) -> None:
        """Let the application answer, unless the head is too large or names no host (RFC 9112, 3.2)."""
        self._bytes_without_body = 0
        self._forget_head()
        if self._resuming:
            return
        size, hosts = len(self.url), 0
        for name, value in self.headers:
            # As it is written: with ": " and CRLF.
            size += len(name) + len(value) + 4
            hosts += name == b"host"
        if size > MAX_HEAD_BYTES:
            raise _HeadError(*TOO_LARGE)
        if hosts != 1 and self.parser.get_http_version() == "1.1":
            raise _HeadError(
                400, "bad-request", f"no valid HTTP/1.1: {hosts} headers Host, where 1 is needed"
            )
        super().on_headers_complete()
        if not self.pipeline:
            self._answering = self.cycle

    def on_response_complete(self) -> None:
        """Let the next request be answered."""
        if self.pipeline:
            self._answering = self.pipeline[-1][0]
        super().on_response_complete()

    def on_message_complete(self) -> None:
        """Expect the next head."""
        # To the parser a request that asks for an upgrade ends with its head.
        if not self.parser.should_upgrade():
            super().on_message_complete()
        self._bytes_without_body = 0

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with a request that is no HTTP."""
        error = sys.exc_info()[1]
        if error is not None and isinstance(error.__context__, _HeadError):
            self._refuse(*error.__context__.args)
        else:
            self._refuse(400, "bad-request", f"no valid HTTP/1.1: {error or msg}")

    def _unsupported_upgrade_warning(self) -> None:
        """Go on without the upgrade (RFC 9110, 7.8), which uvicorn reports here: a body may follow."""
        error = sys.exc_info()[1]
        assert isinstance(error, HttpParserUpgrade)
        version = self.parser.get_http_version().encode()
        # No CONNECT either, behind which all is another protocol; the request itself keeps its method.
        head = [b"POST / HTTP/" + version]
        head += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser, self._resuming = HttpRequestParser(self), True
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"\r\n".join([*head, b"", b""]))
        self._resuming, self._unparsed = False, self._received[error.args[0] :]

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock, and tell the request that is being answered: uvicorn tells only the last one."""
        self._leave()
        super().connection_lost(exc)
        self._forget_head()

    def close_after_answer(self) -> None:
        """Close the connection behind the answer to the last request that came."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def _is_idle(self) -> bool:
        """Whether nothing is in progress, and no timer ends the connection."""
        asked = self.cycle is not None and (self.cycle.more_body or not self.cycle.response_complete)
        return not asked and self._late is None and self.timeout_keep_alive_task is None

    def _await_head(self) -> None:
        self._late = self.loop.call_later(self.head_timeout_s, self._head_is_late)

    def _forget_head(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _head_is_late(self) -> None:
        limit = f"{self.head_timeout_s * 1000:g} ms"
        self._refuse(408, "head-timeout", f"the request's headers took longer than {limit}")

    def _leave(self) -> None:
        """Have nothing more written of the answer in progress: uvloop raises where there is no connection."""
        self.pipeline.clear()
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()

    def _refuse(self, status: int, slug: str, detail: str) -> None:
        """Answer without the application, where no answer has begun, and close."""
        self.refusals[slug] += 1
        answering = self._answering
        if answering is None or answering.response_complete or not answering.response_started:
            self.transport.write(_problem(status, slug, detail))
        self._leave()
        self._forget_head()
        self.transport.close()


def _problem(status: int, slug: str, detail: str) -> bytes:
    """An HTTP answer that closes the connection; uvicorn writes none of this form."""
    title = slug.replace("-", " ").capitalize()
    problem = Problem(
        type=f"/problems/{slug}", title=title, status=status, detail=detail, instance=uuid4().urn
    )
    logger.info("%s %s: %s", problem.instance, problem.type, detail)
    body = problem.model_dump_json().encode()
    head = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Content-Type: {MEDIA_TYPE}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    ]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        head.append("Retry-After: 1")
    return "\r\n".join([*head, "", ""]).encode() + body
