"""Reads the numbers of large JSON tensors in pieces.

A JSON parser holds the GIL until it is done, and so stops the event loop even from a thread. Long arrays of
numbers under the key `data` are therefore cut out of the request first.
"""

import math
import re
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from coserve_server.errors import BadBodyError, InvalidParametersError

MIN_BYTES = 2**16
"""Shorter arrays stay where they are."""
_PIECE_BYTES = 2**16
_KEY = b'"data"'
_OPENING = re.compile(rb'"data"[ \t\r\n]{0,100}:[ \t\r\n]{0,100}(?=\[)')
_SPACE = b" \t\r\n"
# With the letters of NaN and Infinity, which are refused later, in clearer words.
_NUMBER = b"0123456789+-.eENaInfity"
_DIGITS_ALIKE = bytes.maketrans(_NUMBER, b"0" * len(_NUMBER))
_BRACKETS_AS_SPACE = bytes.maketrans(b"[]", b"  ")
_MISPLACED = (b"0[", b"]0", b"][")
"""What no JSON has, once spaces are left out and every character of a number is a 0."""


class NumberArrays:
    """The long arrays of numbers of a request, and the request without them.

    Attributes:
        rest: the JSON with a placeholder for each of them.
    """

    def __init__(self, body: bytes) -> None:
        """Cut the arrays out."""
        # Nobody can know it, and so send it instead of numbers.
        self._token = secrets.token_hex(16)
        self._arrays: dict[str, bytes] = {}
        self.rest = b"".join(self._cut(body)) if len(body) > MIN_BYTES else body

    def find(self, data: list[Any] | None) -> bytes | None:
        """Return the array that was cut out of a request's field; None if the field holds its data."""
        if not self._arrays or data is None or len(data) != 1 or not isinstance(data[0], str):
            return None
        return self._arrays.get(data[0])

    def _cut(self, body: bytes) -> Iterator[bytes]:
        begin = 0
        at = body.find(_KEY)
        while at >= 0:
            opening = _OPENING.match(body, at)
            array = None if opening is None else _find_array(body, opening.end())
            # A quote after a backslash is part of a text.
            if opening is None or array is None or body[at - 1 : at] == b"\\":
                at = body.find(_KEY, at + 1)
                continue
            name = f"{self._token}{len(self._arrays)}"
            self._arrays[name] = array
            yield body[begin : opening.end()]
            yield f'["{name}"]'.encode()
            begin = opening.end() + len(array)
            at = body.find(_KEY, begin)
        yield body[begin:]


def _find_array(body: bytes, begin: int) -> bytes | None:
    """Return the array that begins there; None if it is short, or ends in a text or object."""
    # After the array, there is another key, or the end of its object.
    end = body.find(b'"', begin)
    end = len(body) if end < 0 else end
    brace = body.find(b"}", begin, end)
    end = end if brace < 0 else brace
    array = body[begin:end].rstrip(_SPACE + b",")
    return array if len(array) >= MIN_BYTES and array.endswith(b"]") else None


def read_numbers(name: str, array: bytes, shape: Sequence[int]) -> NDArray[np.float64]:
    """Return the elements of an array that is flat or nested like the shape.

    Args:
        name: the input's.

    Raises:
        BadBodyError: the array is not JSON.
        InvalidParametersError: it has another shape, or other values than numbers, or too large ones.
    """
    count = math.prod(shape)
    found = sum(array.count(b",", at, at + _PIECE_BYTES) for at in range(0, len(array), _PIECE_BYTES)) + 1
    if found != count:
        raise InvalidParametersError(
            f"input {name!r}: shape {list(shape)} needs {count} elements, data has {found} elements"
        )
    values = np.empty(count, np.float64)
    skeleton = []
    at = 0
    for piece in _split(array):
        form = piece.translate(_DIGITS_ALIKE, _SPACE)
        if (b"[" in form or b"]" in form) and any(pair in form for pair in _MISPLACED):
            raise BadBodyError("not JSON: a bracket beside a number, without a comma, in data")
        numbers = _parse(piece.translate(_BRACKETS_AS_SPACE))
        if len(numbers) != form.count(b",") + 1:
            raise BadBodyError("not JSON: a number is missing in data")
        # true, false or null: there are no texts and objects here.
        if b"l" in form or b"r" in form:
            raise InvalidParametersError(f"input {name!r}: data must hold only numbers")
        try:
            values[at : at + len(numbers)] = numbers
        except OverflowError as error:
            raise InvalidParametersError(f"input {name!r}: data holds a number too large") from error
        at += len(numbers)
        skeleton.append(form.translate(None, b"0"))
    if b",".join(skeleton) not in (_skeleton([count]), _skeleton(shape)):
        raise InvalidParametersError(
            f"input {name!r}: shape {list(shape)} needs {count} elements, data is nested differently"
        )
    return values


def _split(array: bytes) -> Iterator[bytes]:
    """Divide an array at some of its commas, which are left out."""
    begin = 0
    while begin <= len(array):
        end = array.find(b",", begin + _PIECE_BYTES)
        end = len(array) if end < 0 else end
        yield array[begin:end]
        begin = end + 1


def _parse(numbers: bytes) -> list[Any]:
    try:
        parsed: list[Any] = from_json(b"[%b]" % numbers)
    except ValueError as error:
        raise BadBodyError(f"not JSON: {error}, in data") from error
    return parsed


def _skeleton(shape: Sequence[int]) -> bytes:
    """Return what is left of an array of that shape without its numbers."""
    text = b"[%b]" % (b"," * (shape[-1] - 1))
    for size in reversed(shape[:-1]):
        text = b"[%b]" % b",".join([text] * size)
    return text
