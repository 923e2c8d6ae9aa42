"""HTTP/2 frames and gRPC messages by hand, so that they can be wrong."""

import contextlib
import socket

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE = range(6)
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(6, 10)
END_STREAM = 1
ACK = 1
END_HEADERS = 4
PADDED = 8


def frame(kind: int, flags: int, stream: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """A frame (RFC 9113, section 4.1), which may say another length than it has."""
    size = len(payload) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


START = PREFACE + frame(SETTINGS, 0, 0)


def headers(**changes: str | None) -> bytes:
    """The headers of a call (RFC 7541, literals without indexing), with changes; None leaves one out."""
    fields: dict[str, str | None] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/inference.GRPCInferenceService/ModelInfer",
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    fields |= {name.replace("__", ":").replace("_", "-"): value for name, value in changes.items()}
    return b"".join(literal(name, value) for name, value in fields.items() if value is not None)


def literal(name: str, value: str) -> bytes:
    return b"\0" + text(name) + text(value)


def text(value: str) -> bytes:
    """A string without Huffman code."""
    encoded = value.encode()
    size = len(encoded)
    if size < 127:
        return bytes([size]) + encoded
    size -= 127
    prefix = b"\x7f"
    while size > 127:
        prefix += bytes([size & 127 | 128])
        size >>= 7
    return prefix + bytes([size]) + encoded


def message(data: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """A gRPC message with its prefix, which may be wrong."""
    size = len(data) if length is None else length
    return bytes([flag]) + size.to_bytes(4, "big") + data


def call(stream: int, body: bytes, end: int = END_STREAM, **changes: str | None) -> bytes:
    """A whole call, in frames of the size that every server accepts."""
    pieces = [body[at : at + 16384] for at in range(0, len(body), 16384)] or [b""]
    opened = frame(HEADERS, END_HEADERS, stream, headers(**changes))
    data = [frame(DATA, 0, stream, piece) for piece in pieces[:-1]]
    return opened + b"".join(data) + frame(DATA, end, stream, pieces[-1])


def exchange(address: str, sent: bytes, wanted: bytes | None = None) -> bytes:
    """Send bytes; return what comes back until the server closes the connection, or is silent for a while.

    Bytes that are wanted end it too, and are waited for longer.
    """
    host, _, port = address.rpartition(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        with contextlib.suppress(ConnectionError, TimeoutError):
            connection.sendall(sent)
        connection.settimeout(20 if wanted else 0.1)
        with contextlib.suppress(ConnectionError, TimeoutError):
            while piece := connection.recv(65536):
                received += piece
                if wanted is not None and wanted in received:
                    break
    return received
