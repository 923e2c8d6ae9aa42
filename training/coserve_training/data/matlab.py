"""MATLAB files of version 5 to 7, the format of SVHN and of ImageNet's class numbers.

The format is described in MathWorks' "MAT-File Format" (chapter 1, "Level 5 MAT-File Format").
"""

import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from coserve_training.data.files import StoredFile
from coserve_training.errors import DataError

HEADER_BYTES = 128
MATRIX = 14
COMPRESSED = 15
UTF8 = 16
STORED = {
    **dict(enumerate(["i1", "u1", "i2", "u2", "i4", "u4", "f4"], start=1)),
    **{9: "f8", 12: "i8", 13: "u8", 17: "u2"},
}
"""Types of numbers in the file. A matrix may be stored in a smaller type than its own."""
STRUCT = 2
TEXT = 4
NUMBERS = dict(enumerate(["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"], start=6))
"""Types of matrices of numbers."""


def read_matlab(file: StoredFile, *variables: str) -> dict[str, Any]:
    """Read variables.

    Returns:
        Numbers as an array, text as a string, and a structure array as lists of its fields' values in
        MATLAB's order. Fields of other kinds (cells, objects, sparse matrices) are None.

    Raises:
        DataError: if the file cannot be read, is damaged or lacks a variable.
    """
    try:
        with file.open() as stream:
            found = dict(_read_variables(memoryview(stream.read())))
    # Damaged data raises many types of errors: ValueError, zlib.error, KeyError, RecursionError and others.
    except Exception as error:
        reason = str(error).replace("\n", " ")
        raise DataError(f"{file.name}: not a MATLAB file, or damaged ({reason})") from error
    if missing := [name for name in variables if found.get(name) is None]:
        raise DataError(f"{file.name}: has no variable {', '.join(missing)}")
    return {name: found[name] for name in variables}


def _read_variables(content: memoryview) -> Iterator[tuple[str, Any]]:
    header = bytes(content[:HEADER_BYTES])
    if header.startswith(b"MATLAB 7.3"):
        raise ValueError("of MATLAB 7.3, which is not supported: save it with -v7")
    order = {b"IM": "<", b"MI": ">"}.get(header[126:128])
    if order is None:
        raise ValueError("it has no MATLAB header")
    for kind, data in _elements(content[HEADER_BYTES:], order):
        if kind == COMPRESSED:
            ((kind, data),) = _elements(_decompress(data, order), order)
        if kind == MATRIX:
            yield _read_matrix(data, order)


def _decompress(data: memoryview, order: str) -> memoryview:
    """Return a compressed element with its tag. The tag limits what is decompressed."""
    stream = zlib.decompressobj()
    tag = stream.decompress(data, 8)
    size = int(np.frombuffer(tag, order + "u4", 2)[1])
    return memoryview(tag + stream.decompress(stream.unconsumed_tail, max(1, size)))


def _elements(content: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Iterate over the kind and the data of each element."""
    start = 0
    while start < len(content):
        kind, size = np.frombuffer(content[start : start + 8], order + "u4", 2).tolist()
        start += 8
        if kind >> 16:  # up to four bytes, in the tag's second half
            size = kind >> 16
            kind &= 0xFFFF
            if size > 4:
                raise ValueError("a small element is too large")
            yield kind, content[start - 4 : start - 4 + size]
            continue
        if start + size > len(content):
            raise ValueError("it ends too early")
        yield kind, content[start : start + size]
        start += size if kind == COMPRESSED else -(-size // 8) * 8


def _read_matrix(content: memoryview, order: str) -> tuple[str, Any]:
    """Return a matrix's name and value."""
    if not content:
        return "", np.empty((0, 0))
    elements = _elements(content, order)
    flags, dimensions, name = (_read_numbers(*next(elements), order) for _ in range(3))
    kind = int(flags[0]) & 0xFF
    shape = dimensions.tolist()
    value: Any = None
    if kind in NUMBERS:
        stored = _read_numbers(*next(elements), order)
        value = stored.astype(order + NUMBERS[kind], copy=False).reshape(shape, order="F")
        value = value.astype(NUMBERS[kind], copy=False)
    elif kind == TEXT:
        encoding, text = next(elements)
        if encoding == UTF8:
            value = str(text, "utf-8")
        else:
            value = "".join(map(chr, _read_numbers(encoding, text, order)))
    elif kind == STRUCT:
        ((width,), names) = (_read_numbers(*next(elements), order) for _ in range(2))
        fields = [bytes(part).rstrip(b"\0").decode() for part in names.reshape(-1, width)]
        value = {field: [] for field in fields}
        for index in range(math.prod(shape) * len(fields)):
            value[fields[index % len(fields)]].append(_read_matrix(next(elements)[1], order)[1])
    return bytes(name).decode(), value


def _read_numbers(kind: int, data: memoryview, order: str) -> Any:
    return np.frombuffer(data, order + STORED[kind])
