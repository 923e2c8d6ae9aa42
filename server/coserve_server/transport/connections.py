"""Limits on connections that uvicorn does not have.

uvicorn closes idle connections after its keep-alive timeout, but waits forever for the rest of a request's
head, and for a client that does not read its response.
"""

import asyncio
import math
import random
import socket
import sys
from collections import Counter
from contextlib import suppress

from httptools import HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from coserve_server.api.middleware.lingering_close import LINGER_S
from coserve_server.observability.metrics import Metrics
from coserve_server.settings import Settings
from coserve_server.transport.heads import MAX_HEAD_BYTES, TOO_LARGE, HeadError, check_head, read_target
from coserve_server.transport.refusals import write_problem

PROBES = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
EXTRA_CONNECTIONS = 16
"""Connections above the limit that may ask for health alone: a busy server must not be restarted for it."""
MAX_PIPELINED = 64
"""Requests that may wait on a connection for the answer to an earlier one; later ones are not read."""
UNREAD_RESPONSE_MS = 60_000
"""Time after which a connection is closed if the client reads nothing of its response."""
MAX_LINGERING = 32
"""Refused connections that stay open until the client closes; others are closed at once."""


def limited(settings: Settings, metrics: Metrics) -> type[HttpToolsProtocol]:
    """Make the class of connections that keeps to the settings, for `uvicorn.Config(http=…)`.

    Args:
        metrics: counts the requests refused here, which the application never sees.
    """

    class Limited(Connection):
        head_timeout_s = settings.head_timeout_ms / 1000
        max_connections = settings.max_connections
        max_age_s = settings.max_connection_age_ms / 1000 or math.inf
        probes = frozenset((root + path).encode() for root in ("", settings.root_path) for path in PROBES)
        refusals = metrics.connections_refused
        lingering: set[Connection] = set()  # noqa: RUF012  # one per server

    return Limited


class _PipelineFullError(Exception):
    """Too many requests wait for the answer to an earlier one."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, with timeouts for heads and unread responses, and problems for bad requests."""

    head_timeout_s: float
    max_connections: int
    max_age_s: float
    """Age after which the next response is the last."""
    probes: frozenset[bytes]
    """Paths that are answered above the limit of connections."""
    refusals: Counter[str]
    """Connections refused, by the kind of problem."""
    lingering: set["Connection"]
    """Connections that were refused, and stay open until their clients have the response."""
    _expires_at = math.inf
    _is_extra = False
    """Whether the connection is above the limit, for a probe."""
    _head_timer: asyncio.TimerHandle | None = None
    _bytes_without_body = 0
    _resuming = False
    """Whether a new parser reads the head of a request that continues without its upgrade."""
    _unparsed: bytes | None = None
    """The data after that head."""
    _received = b""
    _is_deaf = False
    """Whether what arrives is dropped, as the connection closes after the answers to what came before."""
    _is_stopping = False
    _answering: RequestResponseCycle | None = None
    """The request being answered. `cycle` is the request read last, and `pipeline` holds the ones between."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Wait for the first head, or refuse a connection above the limit."""
        super().connection_made(transport)
        # Linux only. It also covers a receive window that stays closed (tcp(7)).
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            own = transport.get_extra_info("socket")
            own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_RESPONSE_MS)
        # Connections that were opened together must not end together.
        self._expires_at = self.loop.time() + random.uniform(0.9, 1.1) * self.max_age_s  # noqa: S311  # no secret
        served = len(self.connections) - len(self.lingering)
        self._is_extra = served > self.max_connections and not self._close_idlest()
        if self._is_extra and served > self.max_connections + EXTRA_CONNECTIONS:
            self._refuse(*self._too_many())
        else:
            self._await_head()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request; limit its head, chunk headers and trailers together."""
        if self.transport.is_closing() or self._is_deaf:
            return
        self._bytes_without_body += len(data)
        self._unparsed = data
        while self._unparsed is not None:
            self._received = self._unparsed
            self._unparsed = None
            super().data_received(self._received)
        self._received = b""
        if self.transport.is_closing() or self._is_deaf:
            return
        if self._bytes_without_body > MAX_HEAD_BYTES:
            self._refuse(*TOO_LARGE)
        elif self._is_idle():
            # An empty line is allowed before a request, but it stops uvicorn's keep-alive timer.
            self._await_head()

    def on_body(self, body: bytes) -> None:
        """Pass a piece of the body on."""
        self._bytes_without_body = 0
        super().on_body(body)

    def on_message_begin(self) -> None:
        """Start the head's timeout at its first byte, unless too many requests wait already."""
        # Reading the heads in a single packet could otherwise take a second.
        if len(self.pipeline) >= MAX_PIPELINED and not self._resuming:
            raise _PipelineFullError
        super().on_message_begin()
        if self._head_timer is None:
            self._await_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; white space after its value is not part of it (RFC 9110, 5.5)."""
        super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        """Start the application, unless the head is too large or has no host (RFC 9112, 3.2)."""
        self._bytes_without_body = 0
        self._stop_head_timer()
        if self._resuming:
            return
        check_head(self.parser, self.url, self.headers)
        if not self.url.startswith(b"/"):
            self.url = read_target(self.url)
        if self._is_extra and self.url.partition(b"?")[0] not in self.probes:
            raise HeadError(*self._too_many())
        super().on_headers_complete()
        if self._is_extra or self.is_expired:
            self.close_after_answer()
        if not self.pipeline:
            self._answering = self.cycle

    def on_response_complete(self) -> None:
        """Let uvicorn start the next request."""
        if self.pipeline:
            self._answering = self.pipeline[-1][0]
        super().on_response_complete()

    def on_message_complete(self) -> None:
        """End the request, unless its body follows."""
        # For the parser, a request that asks for an upgrade ends with its head.
        if not self.parser.should_upgrade():
            super().on_message_complete()
        self._bytes_without_body = 0

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is not HTTP, and say why; or stop reading requests, if too many wait."""
        error = sys.exc_info()[1]
        cause = error.__context__ if error is not None else None
        if isinstance(cause, _PipelineFullError):
            self._is_deaf = True
            self.close_after_answer()
        elif isinstance(cause, HeadError):
            self._refuse(*cause.args)
        else:
            self._refuse(400, "bad-request", f"invalid HTTP/1.1: {error or msg}")

    def _unsupported_upgrade_warning(self) -> None:
        """Continue without the upgrade that uvicorn reports here (RFC 9110, 7.8); a body may follow."""
        error = sys.exc_info()[1]
        assert isinstance(error, HttpParserUpgrade)
        version = self.parser.get_http_version().encode()
        # POST, since the parser stops after the head of a CONNECT; the request itself keeps its method.
        head = [b"POST / HTTP/" + version]
        head += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self.parser = HttpRequestParser(self)
        self._resuming = True
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(b"\r\n".join([*head, b"", b""]))
        self._resuming = False
        self._unparsed = self._received[error.args[0] :]

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer, and tell the request being answered: uvicorn tells only the last one."""
        self._abandon()
        super().connection_lost(exc)
        self._stop_head_timer()
        self.lingering.discard(self)

    @property
    def is_expired(self) -> bool:
        """Whether the response to the next request is the last."""
        return self.loop.time() >= self._expires_at

    def shutdown(self) -> None:
        """Close the connection once it has no request in progress."""
        self._is_stopping = True
        if self in self.lingering:
            self.transport.close()
        else:
            super().shutdown()

    def expire(self) -> None:
        """Make the response to the next request the last, as at the connection's maximum age."""
        self._expires_at = -math.inf

    def close_after_answer(self) -> None:
        """Close the connection after the response to the last request received."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def _too_many(self) -> tuple[int, str, str]:
        return 503, "overloaded", f"the limit of {self.max_connections} open connections is reached"

    def _close_idlest(self) -> bool:
        """Close the connection that has been idle for longest; return whether there was one."""
        idle = {
            timer.when(): connection
            for connection in self.connections
            if isinstance(connection, Connection)
            and (timer := connection.timeout_keep_alive_task) is not None
        }
        if not idle:
            return False
        idle[min(idle)].timeout_keep_alive_handler()
        return True

    def _is_idle(self) -> bool:
        """Return whether no request is in progress and no timer will close the connection."""
        busy = self.cycle is not None and (self.cycle.more_body or not self.cycle.response_complete)
        return not busy and self._head_timer is None and self.timeout_keep_alive_task is None

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._refuse_late_head)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _refuse_late_head(self) -> None:
        limit = f"{self.head_timeout_s * 1000:g} ms"
        self._refuse(408, "head-timeout", f"the request's headers took longer than {limit}")

    def _abandon(self) -> None:
        """Write no more of the response in progress: uvloop raises if the connection is closed."""
        self.pipeline.clear()
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            # Otherwise uvicorn would write that answer before it looks whether the client is there.
            self._answering.waiting_for_100_continue = False
            self._answering.message_event.set()

    def _refuse(self, status: int, slug: str, detail: str) -> None:
        """Respond without the application, unless a response has begun, and close the connection."""
        self.refusals[slug] += 1
        answering = self._answering
        if answering is None or answering.response_complete or not answering.response_started:
            self.transport.write(write_problem(status, slug, detail))
        self._abandon()
        self._stop_head_timer()
        self._linger()

    def _linger(self) -> None:
        """Close the connection once the client has: unread bytes would reset it (RFC 9112, 9.6)."""
        self._is_deaf = True
        self._unset_keepalive_if_required()
        if self._is_stopping or len(self.lingering) >= MAX_LINGERING:
            self.transport.close()
            return
        self.lingering.add(self)
        self._head_timer = self.loop.call_later(LINGER_S, self.transport.close)
        self.flow.resume_reading()
        # A client that sends nothing more closes the connection at its end; TLS cannot end one direction.
        if self.transport.can_write_eof():
            # The client may be gone.
            with suppress(OSError):
                self.transport.write_eof()
