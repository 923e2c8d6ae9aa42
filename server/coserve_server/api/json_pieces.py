"""Writes JSON in pieces.

Serialising a value holds the GIL, and so stops the event loop even if it runs on a thread. Long values are
therefore put together from pieces.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic_core import to_json

PIECE_VALUES = 5000


def write_list(values: Sequence[Any]) -> bytes:
    """Return a list in JSON."""
    if len(values) <= PIECE_VALUES:
        return to_json(values)
    starts = range(0, len(values), PIECE_VALUES)
    return b"[%b]" % b",".join(to_json(values[start : start + PIECE_VALUES])[1:-1] for start in starts)


def write_object(fields: Iterable[tuple[str, bytes]]) -> bytes:
    """Return an object in JSON; its values have been written."""
    return b"{%b}" % b",".join(b"%b:%b" % (to_json(name), value) for name, value in fields)
