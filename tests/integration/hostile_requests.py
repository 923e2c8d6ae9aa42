"""Requests that try to harm the server, by name of their fault."""

import base64
import gzip
import json
import zlib
from typing import Any

from tests.integration.gateway import RED

JSON: dict[str, bytes] = {
    "nothing": b"",
    "null": b"null",
    "a number": b"1",
    "a string": b'"images"',
    "an array": b"[]",
    "NaN": b'{"images": NaN}',
    "infinity": b'{"images": [-Infinity]}',
    "a huge integer": b'{"images": ' + b"9" * 100_000 + b"}",
    "a huge exponent": b'{"images": [1e999999999]}',
    "deep arrays": b"[" * 1_000_000,
    "deep arrays in the field": b'{"images": ' + b"[" * 300 + b"]" * 300 + b"}",
    "deep objects": b'{"a":' * 300_000,
    "a field twice": b'{"images": [], "images": [1]}',
    "many wrong values": b'{"images": [' + b"1," * 900_000 + b"1]}",
    "many faults": b'{"inputs": [' + b"{}," * 600_000 + b"{}]}",
    "many unknown keys": b'{"images": [], ' + b", ".join(b'"%d":0' % i for i in range(100_000)) + b"}",
    "a long unknown key": b'{"images": [], "' + b"k" * 1_900_000 + b'": 0}',
    "half a surrogate pair": rb'{"images": ["\ud800"]}',
    "half a surrogate pair as key": rb'{"images": [], "\udfff": 0}',
    "UTF-16": '{"images": []}'.encode("utf-16"),
    "a byte order mark": b"\xef\xbb\xbf" + b'{"images": []}',
    "control characters": b'{"images": ["\0\x1b[2J"]}',
    "base64 of nothing": b'{"images": [""]}',
    "base64 of noise": b'{"images": ["////"]}',
    "base64 without padding": b'{"images": ["iVBORw0KGgo"]}',
    "base64 with newlines": b'{"images": ["iVBO\\nRw0KGgo="]}',
    "base64 for URLs": b'{"images": ["-_-_"]}',
    "a data URL": b'{"images": ["data:image/png;base64,iVBORw0KGgo="]}',
    "not ASCII": '{"images": ["ÄÖÜ="]}'.encode(),
    "an address": b'{"images": ["http://127.0.0.1/secret"]}',
    "too many images": json.dumps({"images": [base64.b64encode(RED).decode()] * 9}).encode(),
    "a comment": b'{"images": [] /* */}',
    "trailing bytes": b'{"images": []} {"images": []}',
}


def part(disposition: str, body: bytes = RED, *more: str) -> bytes:
    head = "\r\n".join([f"Content-Disposition: {disposition}", *more, "", ""])
    return b"--b\r\n" + head.encode("latin-1") + body + b"\r\n"


FILE = 'form-data; name="files"; filename="a.png"'
NESTED = b'--c\r\nContent-Disposition: file; filename="a.png"\r\n\r\n' + RED + b"\r\n--c--\r\n"
MULTIPART: dict[str, tuple[str, bytes, set[int]]] = {
    "no boundary": ("multipart/form-data", part(FILE), {400}),
    "an empty boundary": ("multipart/form-data; boundary=", part(FILE), {400}),
    "a boundary of 10,000 characters": ("multipart/form-data; boundary=" + "b" * 10_000, part(FILE), {400}),
    "a boundary that never comes": ("multipart/form-data; boundary=z", part(FILE) + b"--b--\r\n", {400}),
    "no end": ("multipart/form-data; boundary=b", part(FILE), {400}),
    "a second part cut off": ("multipart/form-data; boundary=b", part(FILE) * 2, {400}),
    "no part": ("multipart/form-data; boundary=b", b"--b--\r\n", {400, 422}),
    "nothing": ("multipart/form-data; boundary=b", b"", {400, 422}),
    "a part without a head": ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n--b--\r\n", {400}),
    "a part without a name": (
        "multipart/form-data; boundary=b",
        part('form-data; filename="a"') + b"--b--\r\n",
        {400},
    ),
    "a part's head without an end": (
        "multipart/form-data; boundary=b",
        b"--b\r\nA: " + b"a" * 1_000_000,
        {400},
    ),
    "a part with many headers": (
        "multipart/form-data; boundary=b",
        part(FILE, RED, *(f"A{i}: b" for i in range(1000))) + b"--b--\r\n",
        {400},
    ),
    "many parts": ("multipart/form-data; boundary=b", part(FILE, b"") * 10_000 + b"--b--\r\n", {413}),
    "many fields": (
        "multipart/form-data; boundary=b",
        part('form-data; name="files"', b"") * 10_000 + b"--b--\r\n",
        {400},
    ),
    "the field twice": ("multipart/form-data; boundary=b", part(FILE) * 2 + b"--b--\r\n", {200}),
    "nested": (
        "multipart/form-data; boundary=b",
        part('form-data; name="files"', NESTED, "Content-Type: multipart/mixed; boundary=c") + b"--b--\r\n",
        {400, 422},
    ),
    "nested as a file": (
        "multipart/form-data; boundary=b",
        part(FILE, NESTED, "Content-Type: multipart/mixed; boundary=c") + b"--b--\r\n",
        {400},
    ),
    "a path for a name": (
        "multipart/form-data; boundary=b",
        part('form-data; name="files"; filename="../../etc/passwd"') + b"--b--\r\n",
        {200},
    ),
    "a name that is not UTF-8": (
        "multipart/form-data; boundary=b",
        part('form-data; name="files"; filename="\xff\xfe"') + b"--b--\r\n",
        {200},
    ),
    "another transfer encoding": (
        "multipart/form-data; boundary=b",
        part(FILE, base64.b64encode(RED), "Content-Transfer-Encoding: base64") + b"--b--\r\n",
        {200, 400},
    ),
    **{
        f"charset {charset}": (
            f"multipart/form-data; boundary=b; charset={charset}",
            part(f'form-data; name="files"; filename="{filename}"') + b"--b--\r\n",
            {200 if charset == "UTF-8" else 400},
        )
        for charset, filename in (
            ("UTF-8", "a"),
            ("undefined", "a"),
            ("punycode", "\xff-"),
            ("utf-7", "+2AA-"),
            ("unicode_escape", "\\ud800"),
            ("base64", "a"),
            ("no-such-thing", "a"),
        )
    },
}


def infer(**changes: Any) -> bytes:
    tensor = {"name": "images", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [0.0] * 192}
    return json.dumps({"inputs": [tensor | changes]}).encode()


def binary(size: object, shape: object = (1, 3, 8, 8)) -> bytes:
    return infer(data=None, shape=shape, parameters={"binary_data_size": size})


COMPRESSED = {"Content-Encoding": "gzip"}
TENSORS: dict[str, tuple[bytes, dict[str, str]]] = {
    "a bomb in gzip": (gzip.compress(bytes(100_000_000)), COMPRESSED),
    "a bomb in a bomb": (gzip.compress(gzip.compress(bytes(100_000_000))), COMPRESSED),
    "a bomb in deflate": (zlib.compress(bytes(100_000_000)), {"Content-Encoding": "deflate"}),
    "gzip cut off": (gzip.compress(infer())[:-9], COMPRESSED),
    "gzip with a tail": (gzip.compress(infer()) + b"tail", COMPRESSED),
    "gzip of a wrong checksum": (gzip.compress(infer())[:-8] + bytes(8), COMPRESSED),
    "not gzip": (infer(), COMPRESSED),
    "several encodings": (gzip.compress(infer()), {"Content-Encoding": "gzip, gzip"}),
    "an unknown encoding": (infer(), {"Content-Encoding": "zstd"}),
    "a negative shape": (infer(shape=[-1, 3, 8, 8]), {}),
    "all of a shape negative": (infer(shape=[-1, -3, -8, 8]), {}),
    "no images": (infer(shape=[0, 3, 8, 8], data=[]), {}),
    "no shape": (infer(shape=[]), {}),
    "a shape of a thousand": (infer(shape=[1] * 1000), {}),
    "a shape that overflows": (infer(shape=[2**62, 3, 8, 8]), {}),
    "a shape beyond 64 bits": (infer(shape=[2**64 + 1, 3, 8, 8]), {}),
    "a shape of 4000 digits": (infer(shape=[10**4000, 3, 8, 8]), {}),
    "a shape of fractions": (infer(shape=[1.5, 3, 8, 8]), {}),
    "a shape of text": (infer(shape=["1", 3, 8, 8]), {}),
    "more images than allowed": (infer(shape=[9, 3, 8, 8], data=[0.0] * 192 * 9), {}),
    "no number": (infer(data=[None] * 192), {}),
    "NaN": (infer(data=[float("nan")] * 192), {}),
    "a number too large for a float": (infer(data=[10**400] * 192), {}),
    "another type": (infer(datatype="BYTES"), {}),
    "a long name": (infer(name="n" * 1_000_000), {}),
    "shared memory": (infer(data=None, parameters={"shared_memory_region": "/dev/mem"}), {}),
    "a timeout of 400 digits": (infer()[:-1] + b', "parameters": {"timeout": 1' + b"0" * 400 + b"}}", {}),
    "a binary size of 4000 digits": (binary(10**4000) + bytes(768), {"length": "json"}),
    "a binary size beyond the body": (binary(2**40) + bytes(768), {"length": "json"}),
    "a negative binary size": (binary(-768) + bytes(768), {"length": "json"}),
    "a binary size that overflows with its shape": (
        binary(0, (2**61, 3, 8, 8)),
        {"length": "json"},
    ),
    "binary NaN": (binary(768) + b"\xff" * 768, {"length": "json"}),
    "a length beyond the body": (binary(768) + bytes(768), {"length": "99999999"}),
    "a negative length": (binary(768) + bytes(768), {"length": "-5"}),
    "a length of 5000 digits": (binary(768) + bytes(768), {"length": "1" * 5000}),
    "a length of no number": (binary(768) + bytes(768), {"length": "0x10"}),
    "a length in the middle": (binary(768) + bytes(768), {"length": "20"}),
    "a raw tensor too short": (bytes(767), {"length": "0"}),
}


POST = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
HTTP: dict[str, tuple[bytes, list[list[int]]]] = {
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), [[400]]),
    "no HTTP": (b"hello world\r\n\r\n", [[400]]),
    "HTTP/0.9": (b"GET /\r\n\r\n", [[400], [200]]),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [[400], [404, 400]]),
    "no host": (b"GET /healthz HTTP/1.1\r\n\r\n", [[400]]),
    "two hosts": (b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", [[400]]),
    "a long line": (b"GET /" + b"a" * 400_000, [[431]]),
    "a long header": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 400_000, [[431]]),
    "many headers": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 70_000, [[431]]),
    "a zero byte in a header": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n", [[400]]),
    "a space before a colon": (b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n", [[400]]),
    "a bare line feed in a chunk": (CHUNKED + b"1\na\n0\n\n", [[400], [408]]),
    "a negative length": (POST + b"Content-Length: -5\r\n\r\n", [[400]]),
    "a length with a sign": (POST + b"Content-Length: +5\r\n\r\nabcde", [[400]]),
    "a length of 5000 digits": (POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n", [[400]]),
    "two lengths": (POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", [[400]]),
    "a length and chunks": (
        POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n",
        [[400]],
    ),
    "unknown transfer coding": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", [[400], [408]]),
    "a chunk's size that is no number": (CHUNKED + b"zz\r\n", [[400]]),
    "a chunk's size of 100 digits": (CHUNKED + b"f" * 100 + b"\r\n", [[400]]),
    "a chunk's size that overflows": (CHUNKED + b"f" * 16 + b"\r\nab", [[408]]),
    "a chunk longer than it says": (CHUNKED + b"1\r\nabc\r\n0\r\n\r\n", [[400]]),
    "a chunk's long extension": (CHUNKED + b"1;a=" + b"a" * 400_000, [[400], [431]]),
    "trailers without an end": (CHUNKED + b"1\r\na\r\n0\r\n" + b"A: b\r\n" * 70_000, [[400], [431]]),
    "broken chunks after an early answer": (
        CHUNKED.replace(b"/v1/classify", b"/nowhere") + b"1\r\na\r\nzz\r\n",
        [[404], [400]],
    ),
    "a body that is too short": (POST + b"Content-Length: 100\r\n\r\nabc", [[408]]),
    "a body that is too long": (POST + b"Content-Length: 1\r\n\r\nabcdef\r\n\r\n", [[400, 400], [400]]),
    "a body that never begins": (POST + b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n", [[408]]),
    "a request in the body of another": (
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 34\r\nConnection: close\r\n\r\n"
        b"GET /v1/models HTTP/1.1\r\nHost: x\r\n",
        [[200]],
    ),
    "an upgrade": (
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n\r\n",
        [[200]],
    ),
    "CONNECT": (
        b"CONNECT evil:443 HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n",
        [[405]],
    ),
    "TRACE": (b"TRACE /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", [[405]]),
    "a method of 9000 letters": (
        b"A" * 9000 + b" / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        [[400], [404]],
    ),
    "another server's address": (
        b"GET http://evil/v1/models HTTP/1.1\r\nHost: evil\r\nConnection: close\r\n\r\n",
        [[200], [404]],
    ),
    "a path that leaves the server": (
        b"GET /v1/models/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        [[404]],
    ),
    "a path that is no UTF-8": (
        b"GET /v1/models/%ff%00%ed%a0%80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        [[404]],
    ),
    "a query of 10,000 letters": (
        b"GET /v1/models/a?version=" + b"v" * 10_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        [[404]],
    ),
    "a query of 4000 digits": (
        b"POST /v1/classify?top_k=" + b"9" * 4000 + POST[17:] + b"Connection: close\r\n\r\n",
        [[400], [422]],
    ),
    "a timeout of 300 digits": (
        POST + b"Request-Timeout-Ms: " + b"9" * 300 + b"\r\nConnection: close\r\n\r\n",
        [[400]],
    ),
    "a timeout of no number": (
        POST + b"Request-Timeout-Ms: inf\r\nConnection: close\r\n\r\n",
        [[422]],
    ),
    "an endless body where none is wanted": (
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n",
        [[200]],
    ),
}

FOR_PAIR: dict[str, tuple[bytes, list[list[int]]]] = {
    "white space after headers' values": (
        b"POST /v2/models/pair/infer HTTP/1.1\r\nHost: x \r\nContent-Length: 768 \r\nConnection: close \r\n"
        b"Inference-Header-Content-Length:\t0 \t\r\nContent-Encoding: identity \r\n\r\n" + bytes(768),
        [[200]],
    ),
}
"""Odd requests that a server answers, if its ensemble `pair` takes 768 bytes per image."""


STAGES = {
    "before the head": b"",
    "in the head": POST[:30],
    "after the head": POST + b"Content-Length: 1000\r\n\r\n",
    "in the body": POST + b"Content-Length: 1000\r\n\r\n" + RED,
    "in a chunk": CHUNKED + b"ff\r\nab",
    "before the answer": POST + b"Content-Length: %d\r\n\r\n" % len(RED) + RED,
    "among many answers": (POST + b"Content-Length: %d\r\n\r\n" % len(RED) + RED) * 20,
}
