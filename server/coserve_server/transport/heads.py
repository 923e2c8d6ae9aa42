"""Reads a request's target, and refuses heads that are well-formed but that this server does not take."""

from collections.abc import Iterable

from httptools import HttpParserInvalidURLError, HttpRequestParser, parse_url

MAX_HEAD_BYTES = 16 * 2**10
"""Limit on a request's target and headers together."""
TOO_LARGE = (431, "head-too-large", f"more than {MAX_HEAD_BYTES} bytes of headers")
MAX_SHOWN_BYTES = 100


class HeadError(Exception):
    """A request's head is refused; the arguments are the status, and the problem's slug and detail."""


def check_head(parser: HttpRequestParser, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Check a head that the parser has just read.

    Raises:
        HeadError: it is too large, has no host or several (RFC 9112, 3.2), or is for a proxy.
    """
    size = len(target)
    hosts = 0
    for name, value in headers:
        # With ": " and CRLF.
        size += len(name) + len(value) + 4
        hosts += name == b"host"
    if size > MAX_HEAD_BYTES:
        raise HeadError(*TOO_LARGE)
    if hosts != 1 and parser.get_http_version() == "1.1":
        raise HeadError(400, "bad-request", f"invalid HTTP/1.1: there must be one Host header, not {hosts}")
    if parser.get_method() == b"CONNECT":
        raise HeadError(
            405,
            "method-not-allowed",
            "CONNECT is for proxies, and this server is not one; is it configured as a proxy?",
        )


def read_target(target: bytes) -> bytes:
    """Return the path and query of a request's target that is a whole URL (RFC 9112, 3.2.2), or `*`."""
    try:
        url = parse_url(target)
    except HttpParserInvalidURLError as error:
        text = target[:MAX_SHOWN_BYTES].decode("latin-1")
        raise HeadError(
            400, "bad-request", f"invalid HTTP/1.1: the target {text!r} is neither a path nor a URL"
        ) from error
    query = b"?" + url.query if url.query else b""
    return (url.path or b"/") + query
