"""Multipart bodies in pieces of any size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coserve_server.api.v1.multipart import MAX_FIELDS, PartReader
from coserve_server.errors import BadBodyError, TooManyImagesError

TYPE = "multipart/form-data; boundary=b"
HEAD = b'--b\r\nContent-Type: image/png\r\nContent-Disposition: form-data; name="files"'


def read(body: bytes, size: int, max_files: int = 2) -> list[tuple[str, str | None, bytes]]:
    reader = PartReader(TYPE, max_files)
    for begin in range(0, len(body), size):
        reader.write(body[begin : begin + size])
    return [(part.name, part.filename, b"".join(part.pieces)) for part in reader.finish()]


def file(data: bytes, name: bytes = b"a") -> bytes:
    return HEAD + b'; filename="%b"\r\n\r\n%b\r\n' % (name, data)


@given(
    st.lists(st.binary(max_size=100).filter(lambda data: b"--b" not in data), max_size=3), st.integers(1, 99)
)
def test_pieces_of_any_size_give_the_same_parts(files: list[bytes], size: int) -> None:
    body = b"".join(map(file, files)) + HEAD + b"\r\n\r\ndropped\r\n--b--\r\n"
    assert read(body, size) == [*(("files", "a", data) for data in files), ("files", None, b"")]


@pytest.mark.parametrize("size", [1, 1000])
def test_what_is_cut_off_or_too_much_is_refused(size: int) -> None:
    for body in (b"", file(b"x"), file(b"x") + b"--b\r\n"):
        with pytest.raises(BadBodyError, match="the last boundary is missing"):
            read(body, size)
    with pytest.raises(TooManyImagesError, match="more than the 2 images allowed"):
        read(file(b"") * 4, size)
    read((HEAD + b"\r\n\r\n\r\n") * MAX_FIELDS + b"--b--", size)
    with pytest.raises(BadBodyError, match=f"Maximum number of fields is {MAX_FIELDS}"):
        read((HEAD + b"\r\n\r\n\r\n") * (MAX_FIELDS + 1), size)
    with pytest.raises(BadBodyError, match="Invalid multipart data"):
        read(b"x" + file(b"x"), size)


def test_names_are_utf_8_or_latin_1() -> None:
    (part,) = read(file(b"", "grün".encode()) + b"--b--", 1000)
    assert part[1] == "grün"
    (part,) = read(file(b"", "grün".encode("latin-1")) + b"--b--", 1000)
    assert part[1] == "grün"
