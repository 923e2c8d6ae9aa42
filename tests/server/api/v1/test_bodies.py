"""Compressed bodies, base64 in all its forms, and bodies without an image type."""

import base64
import gzip
import zlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coserve_server.api.requests import compression
from coserve_server.api.requests.base64_images import decode_base64
from coserve_server.errors import BadBodyError, BadImageError, BodyTooLargeError
from tests.server.api.application import Server
from tests.server.fake_engine import ReadingEngine, ensemble, png

PACKERS = {
    "gzip": gzip.compress,
    "X-GZIP": gzip.compress,
    "deflate": zlib.compress,
    "identity": bytes,
    "": bytes,
}
MULTIPART = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%b\r\n--b--\r\n'
BODIES = {
    "multipart/form-data; boundary=b": MULTIPART % png(),
    "application/json": b'{"images": ["%b"]}' % base64.b64encode(png()),
    "image/png": png(),
    "application/octet-stream": png(),
}


@pytest.fixture(scope="module")
def server() -> Server:
    return Server(ReadingEngine(ensemble()), max_body_bytes=5000)


def classify(server: Server, body: bytes, content_type: str, encoding: str = "") -> Any:
    headers = {"Content-Type": content_type, "Content-Encoding": encoding}
    response = server.ask("POST", "/v1/classify", content=body, headers=headers)
    return response.status_code, response.json().get("detail") or len(response.json()["results"])


@pytest.mark.parametrize("encoding", PACKERS)
@pytest.mark.parametrize("content_type", BODIES)
def test_every_form_may_be_compressed(server: Server, content_type: str, encoding: str) -> None:
    assert classify(server, PACKERS[encoding](BODIES[content_type]), content_type, encoding) == (200, 1)


@pytest.mark.parametrize("content_type", BODIES)
def test_limits_and_errors_are_the_same_for_every_form(server: Server, content_type: str) -> None:
    status, detail = classify(server, gzip.compress(bytes(5001)), content_type, "gzip")
    assert (status, detail) == (413, "the decompressed body has more than the 5000 bytes allowed")
    for encoding in ("br", "zstd", "gzip, gzip"):
        status, detail = classify(server, BODIES[content_type], content_type, encoding)
        assert (status, detail) == (415, f"Content-Encoding is {encoding!r}; send gzip, deflate or none")
    status, detail = classify(server, BODIES[content_type], content_type, "gzip")
    assert status == 400
    assert detail.startswith("the body is not gzip")


def test_other_calls_take_compressed_bodies_too(server: Server) -> None:
    headers = {"Content-Encoding": "gzip"}
    body = gzip.compress(b'{"ready": true}')
    response = server.ask("POST", "/v2/repository/index", content=body, headers=headers)
    assert [one["name"] for one in response.json()] == ["pair"]


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=5), st.integers(1, 400))
def test_gzip_may_have_several_members(parts: list[bytes], piece_bytes: int) -> None:
    body = b"".join(map(gzip.compress, parts))
    whole = b"".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "_PIECE_BYTES", piece_bytes)
        assert compression.decompress(body, "gzip", len(whole)) == whole
        if whole:
            with pytest.raises(BodyTooLargeError):
                compression.decompress(body, "gzip", len(whole) - 1)
        with pytest.raises(BadBodyError, match=r"cut off|not gzip"):
            compression.decompress(body[:-1], "gzip", len(whole))
        with pytest.raises(BadBodyError, match=r"not gzip|cut off"):
            compression.decompress(body + b"t", "gzip", len(whole))


def test_other_compressed_data_that_is_too_much() -> None:
    compression.decompress(gzip.compress(b"") * compression.MAX_MEMBERS, "gzip", 1)
    with pytest.raises(BadBodyError, match="more than 1000 gzip members"):
        compression.decompress(gzip.compress(b"") * (compression.MAX_MEMBERS + 1), "gzip", 1)
    with pytest.raises(BadBodyError, match="more bytes after its deflate data"):
        compression.decompress(zlib.compress(b"x") * 2, "deflate", 2)
    with pytest.raises(BadBodyError, match="cut off"):
        compression.decompress(b"", "gzip", 2)


def divided(text: str, size: int) -> Iterator[str]:
    return (text[at : at + size] for at in range(0, len(text), size))


@given(
    st.binary(max_size=300),
    st.sampled_from(["\n", "\r\n", " ", "\t"]),
    st.integers(1, 99),
    st.integers(100, 200),
)
def test_base64_may_have_line_breaks_and_be_a_data_uri(data: bytes, gap: str, width: int, size: int) -> None:
    text = base64.b64encode(data).decode()
    broken = gap.join(divided(text, width)) + gap
    for prefix in (
        "",
        gap,
        "data:image/png;base64,",
        "DATA:;BASE64,",
        f"{gap}data:a/b;charset=utf-8;base64,{gap}",
    ):
        assert decode_base64(divided(prefix + broken, size), 0) == data


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("data:image/png,%89PNG", "image 3: the data URI is not base64"),
        ("data:image/png;base64", "image 3: the data URI is not base64"),
        ("image/png;base64,AAAA", "image 3: not base64"),
        ("-_-_", "image 3: not base64"),
        ("AAA", "image 3: not base64"),
        ("ÄÖÜ=", "image 3: not base64: it has other characters than ASCII"),
        ("\ud800", "image 3: not base64: it has other characters than ASCII"),
        ("AAAA\N{NO-BREAK SPACE}", "image 3: not base64"),
        ("http://127.0.0.1/a", "image 3: not base64"),
    ],
)
def test_what_is_not_base64(text: str, fault: str) -> None:
    with pytest.raises(BadImageError, match=fault):
        decode_base64(iter([text]), 3)
