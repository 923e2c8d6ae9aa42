"""Messages that would take far more memory parsed than encoded."""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as messages

from coserve_server.api.grpc.messages import parse
from coserve_server.api.grpc.wire import has_more_fields
from coserve_server.errors import BadBodyError, BodyTooLargeError
from tests.server.api.grpc.calls import request

Request = messages.ModelInferRequest
SIZE = 2**20
"""Size of each bomb in bytes."""


def varint(number: int) -> bytes:
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def field(number: int, content: bytes) -> bytes:
    """A field with a length: a text, a message, or a packed list."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def fill(content: bytes) -> bytes:
    return content * (SIZE // len(content))


BOMBS = {
    "inputs": fill(field(5, b"")),
    "outputs": fill(field(6, b"")),
    "raw tensors": fill(field(7, b"")),
    "parameters": b"".join(field(4, field(1, b"%05d" % n)) for n in range(100_000)),
    "parameters of an input": field(5, b"".join(field(4, field(1, b"%05d" % n)) for n in range(100_000))),
    "a packed shape": field(5, field(3, fill(b"\x01"))),
    "a shape": field(5, fill(b"\x18\x01")),
    "empty texts": field(5, field(5, fill(field(8, b"")))),
    "small numbers": field(5, field(5, field(3, fill(b"\x01")))),
    "contents again and again": field(5, fill(field(5, b""))),
    "unknown fields": fill(b"\x80\x01\x01"),
    "unknown groups": fill(b"\x7b\x7c"),
    "bombs of two kinds": fill(field(5, b"")) + field(5, field(3, fill(b"\x01"))),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_are_not_parsed(bomb: str) -> None:
    with pytest.raises(BodyTooLargeError, match="the message has more than 1000 fields"):
        parse(Request, BOMBS[bomb])


def test_small_bombs_are_not_parsed() -> None:
    """They would take the event loop a hundred times as long as a request of their size."""
    with pytest.raises(BodyTooLargeError, match="the message has more than 1000 fields"):
        parse(Request, field(5, b"") * 1001)


def test_large_tensors_are_few_fields() -> None:
    images = np.zeros((64, 3, 32, 32), np.float32)
    for raw in (True, False):
        asked = request(images, raw=raw)
        assert parse(Request, asked.SerializeToString()) == asked
        assert not has_more_fields(asked.SerializeToString(), Request, 20)


def count(message: Any) -> int:
    """Count a message's fields as they are encoded; packed lists of numbers count with their elements."""
    total = 0
    for descriptor, value in message.ListFields():
        repeated = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        values = value if repeated else [value]
        if descriptor.message_type is not None:
            total += sum(1 + count(one) for one in values)
        elif descriptor.type == FieldDescriptor.TYPE_FLOAT:
            total += 1
        elif descriptor.type == FieldDescriptor.TYPE_INT64:
            total += 1 + len(values)
        else:
            total += len(values)
    return total


SHAPES = st.lists(st.integers(0, 127), max_size=4)
"""Numbers of one byte each."""


@st.composite
def asked(draw: st.DrawFn) -> messages.ModelInferRequest:
    message = Request(id=draw(st.text(max_size=3)), model_name="m")
    for shape in draw(st.lists(SHAPES, max_size=3)):
        tensor = message.inputs.add(name="i", shape=shape)
        tensor.contents.fp32_contents.extend(draw(st.lists(st.just(1.0), max_size=3)))
        tensor.contents.bytes_contents.extend(draw(st.lists(st.binary(max_size=3), max_size=3)))
        tensor.contents.int64_contents.extend(draw(SHAPES))
    message.raw_input_contents.extend(draw(st.lists(st.binary(max_size=9), max_size=3)))
    for name in draw(st.lists(st.text(min_size=1, max_size=3), max_size=3)):
        message.outputs.add(name=name)
    return message


@given(asked())
def test_fields_are_counted_at_every_level(message: messages.ModelInferRequest) -> None:
    fields = count(message)
    data = message.SerializeToString()
    assert not has_more_fields(data, Request, fields)
    assert has_more_fields(data, Request, fields - 1)


@given(st.binary(max_size=200), st.integers(0, 50))
def test_any_bytes_are_counted(data: bytes, limit: int) -> None:
    assert has_more_fields(data, Request, limit) in {True, False}
    with contextlib.suppress(BadBodyError):
        assert isinstance(parse(Request, data), Request)


@pytest.mark.parametrize("cut", [1, 2, 3, 10])
def test_what_is_cut_off_is_not_read_past_its_end(cut: int) -> None:
    data = request().SerializeToString()[:-cut]
    assert not has_more_fields(data, Request, 20)
    with pytest.raises(BadBodyError):
        parse(Request, data)
