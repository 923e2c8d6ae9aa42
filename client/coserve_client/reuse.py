"""Recognise requests that met a kept connection which the server was closing."""

from collections.abc import Mapping
from typing import Any

import httpx

SENDING = "http11.send_request_headers.started"
ANSWERED = "http11.receive_response_headers.complete"
BROKEN = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


class Attempt:
    """What the transport reports about the sending of one request (httpcore's `trace` extension)."""

    def __init__(self) -> None:
        self._events: set[str] = set()

    def record(self, event: str, _: Mapping[str, Any]) -> None:
        """Record an event of `httpx.Client`."""
        if event == SENDING:
            # What was answered so far was a proxy's CONNECT.
            self._events.discard(ANSWERED)
        self._events.add(event)

    async def arecord(self, event: str, info: Mapping[str, Any]) -> None:
        """Record an event of `httpx.AsyncClient`."""
        self.record(event, info)

    def was_accepted(self) -> bool:
        """Return whether a connection was opened for the request, to the server or to a proxy."""
        return any(event.endswith(".connect_tcp.complete") for event in self._events)

    def was_answered(self) -> bool:
        """Return whether the head of a response came back."""
        return ANSWERED in self._events

    def met_closing_connection(self) -> bool:
        """Return whether the request went out on a kept connection and nothing came back.

        The server, or a balancer in front of it, may have closed the connection at the same moment. RFC 9112,
        section 9.3.1, lets a client repeat such a request if that does no harm, and classifying never does.
        """
        return (
            SENDING in self._events
            and not any(".connect_tcp." in event for event in self._events)
            and not self.was_answered()
        )
