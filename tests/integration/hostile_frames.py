"""Connections and calls made to harm the server that reads them, by name of their fault."""

import os
import ssl

import numpy as np

from tests.integration import http2
from tests.integration.http2 import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    START,
    WINDOW_UPDATE,
    call,
    frame,
    headers,
    literal,
    message,
)
from tests.server.api.grpc.calls import request

IMAGES = np.zeros((2, 3, 8, 8), np.float32)
GOOD = request(IMAGES)
BODY = message(GOOD.SerializeToString())

OPEN = frame(HEADERS, END_HEADERS, 1, headers())
BROKEN_CONNECTIONS: dict[str, bytes] = {
    "nothing": b"",
    "HTTP/1.1": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": ssl.PROTOCOL_TLS_CLIENT.to_bytes(1, "big") + b"\x16\x03\x01\x02\x00" + bytes(512),
    "noise": bytes(range(256)) * 400,
    "half the preface": http2.PREFACE[:9],
    "no settings": http2.PREFACE,
    "half a frame": START + OPEN[:20],
    "a frame of 16 MB": START + frame(DATA, 0, 1, b"x" * 100, length=2**24 - 1),
    "a frame of no known kind": START + frame(200, 255, 1, b"x" * 100),
    "data without a call": START + frame(DATA, 0, 1, b"x"),
    "data for no stream": START + frame(DATA, 0, 0, b"x"),
    "a call on stream 0": START + frame(HEADERS, END_HEADERS, 0, headers()),
    "a call on an even stream": START + frame(HEADERS, END_HEADERS, 2, headers()),
    "streams that count down": START + call(5, BODY) + call(3, BODY),
    "a promise": START + frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + headers()),
    "padding beyond the frame": START + frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + headers()),
    "a stream that depends on itself": START + frame(PRIORITY, 0, 1, b"\0\0\0\1\0"),
    "a window beyond 31 bits": START + OPEN + frame(WINDOW_UPDATE, 0, 1, b"\x7f\xff\xff\xff") * 2,
    "a window of nothing": START + OPEN + frame(WINDOW_UPDATE, 0, 1, bytes(4)),
    "settings of half a length": START + frame(SETTINGS, 0, 0, b"\0" * 5),
    "a tiny window for answers": http2.PREFACE + frame(SETTINGS, 0, 0, b"\0\4\0\0\0\1") + call(1, BODY),
    "goodbye": START + OPEN + frame(GOAWAY, 0, 0, bytes(8)),
    "broken compression of headers": START + frame(HEADERS, END_HEADERS, 1, b"\xff" * 50),
    "an index that does not exist": START + frame(HEADERS, END_HEADERS, 1, b"\xbf\x80\x01"),
    "a table of 4 GB": START + frame(HEADERS, END_HEADERS, 1, b"\x3f\xe1\xff\xff\xff\x0f" + headers()),
}
FLOODS: dict[str, bytes] = {
    "settings": START + frame(SETTINGS, 0, 0, b"\0\3\0\0\0\x64") * 20_000,
    "pings": START + frame(PING, 0, 0, bytes(8)) * 20_000,
    "empty data": START + OPEN + frame(DATA, 0, 1) * 20_000,
    "priorities": START + b"".join(frame(PRIORITY, 0, 2 * n + 1, bytes(5)) for n in range(10_000)),
    "window updates": START + OPEN + frame(WINDOW_UPDATE, 0, 0, b"\0\0\0\1") * 20_000,
    "calls that are reset at once": START
    + b"".join(
        frame(HEADERS, END_HEADERS, 2 * n + 1, headers()) + frame(RST_STREAM, 0, 2 * n + 1, b"\0\0\0\x08")
        for n in range(5000)
    ),
    "calls without messages": START
    + b"".join(frame(HEADERS, END_HEADERS, 2 * n + 1, headers()) for n in range(2000)),
    "calls that are half closed": START
    + b"".join(frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, headers()) for n in range(2000)),
    "headers without end": START
    + frame(HEADERS, 0, 1, headers())
    + frame(CONTINUATION, 0, 1, literal("x", "y" * 1000)) * 2000,
    "empty headers without end": START + frame(HEADERS, 0, 1) + frame(CONTINUATION, 0, 1) * 20_000,
    # Each reference takes one byte here, and 4000 in the server.
    "references to one long header": START
    + frame(HEADERS, END_HEADERS, 1, b"\x40" + literal("x", "y" * 4000)[1:] + b"\xbe" * 16_000),
}
BROKEN_CALLS: dict[str, bytes] = {
    "no message": call(1, b""),
    "half a prefix": call(1, b"\0\0"),
    "a length beyond the message": call(1, message(b"x" * 10, length=11)),
    "a length of 4 GB": call(1, message(b"x" * 10, length=2**32 - 1)),
    "a length below the message": call(1, message(GOOD.SerializeToString(), length=10)),
    "a compressed message without its method": call(1, message(b"x", flag=1)),
    "an unknown method of compression": call(1, message(b"x", flag=1), grpc_encoding="cow"),
    "broken gzip": call(1, message(b"\x1f\x8b" + b"x" * 50, flag=1), grpc_encoding="gzip"),
    "a flag that does not exist": call(1, message(b"x", flag=255)),
    "a message of noise": call(1, message(os.urandom(5000))),
    "a message of zeros": call(1, message(bytes(100_000))),
    "two messages": call(1, BODY + BODY),
    "many messages": call(1, BODY * 100),
    "another content type": call(1, BODY, content_type="application/json"),
    "no content type": call(1, BODY, content_type=None),
    "GET": call(1, BODY, __method="GET"),
    "no path": call(1, BODY, __path=None),
    "an empty path": call(1, BODY, __path=""),
    "a path of 10 kB": call(1, BODY, __path="/" + "x" * 10_000),
    "a path of line ends": call(1, BODY, __path="/a\r\nb/\0"),
    "an instant": call(1, BODY, grpc_timeout="1n"),
    "no time": call(1, BODY, grpc_timeout="0S"),
    "a time before now": call(1, BODY, grpc_timeout="-5S"),
    "a time without end": call(1, BODY, grpc_timeout="99999999H"),
    "time in words": call(1, BODY, grpc_timeout="soon"),
    "binary metadata that is not": call(1, BODY, x_bin="!!!"),
    "an id of line ends": call(1, BODY, x_request_id="a\nb"),
    "a trace of noise": call(1, BODY, traceparent="00-zz"),
    "a client that ends in the middle": call(1, BODY[:-50], end=0),
}
