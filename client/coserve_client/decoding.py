"""Parse JSON, and build frozen dataclasses from its values, guided by their annotations."""

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from coserve_client.errors import ProtocolError

T = TypeVar("T")


def parse_json(content: bytes) -> object:
    """Parse JSON.

    Raises:
        ValueError: it is not valid, or nested too deeply for Python.
    """
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def decode(annotation: type[T], value: object, where: str) -> T:
    """Check a JSON value against an annotation and convert it.

    Supports dataclasses, `tuple[X, ...]`, `Mapping[str, X]`, `X | None`, `Any` and JSON's scalars. Keys that
    a dataclass does not know are ignored: a newer server may send more. An older one may send less: fields
    with a default may be missing.

    Args:
        annotation: the expected type.
        value: a value returned by `parse_json`.
        where: path of the value in the document, for messages.

    Raises:
        ProtocolError: a key is missing or a value has the wrong type; the message gives its path.
    """
    return cast("T", _decode(annotation, value, where))


def _decode(annotation: Any, value: object, where: str) -> object:
    origin = get_origin(annotation)
    args = get_args(annotation)
    if annotation is Any:
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _decode(args[0], value, where)
    if is_dataclass(annotation):
        return _decode_object(cast("type", annotation), _expect(dict, value, where), where)
    if origin is tuple:
        items = _expect(list, value, where)
        return tuple(_decode(args[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is Mapping:
        return {k: _decode(args[1], v, f"{where}.{k}") for k, v in _expect(dict, value, where).items()}
    if annotation is float and type(value) is int:
        return _to_float(value, where)
    return _expect(annotation, value, where)


def _decode_object(cls: type, value: dict[str, object], where: str) -> object:
    hints = _type_hints(cls)
    absent = [field for field in fields(cls) if field.name not in value]
    if missing := [field.name for field in absent if field.default is MISSING]:
        raise ProtocolError(f"the server's response lacks {where}.{missing[0]}")
    names = [field.name for field in fields(cls) if field not in absent]
    return cls(**{name: _decode(hints[name], value[name], f"{where}.{name}") for name in names})


@cache
def _type_hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _to_float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise ProtocolError(f"{where} in the server's response is too large a number") from error


def _expect(expected: type[T], value: object, where: str) -> T:
    if type(value) is not expected:
        raise ProtocolError(
            f"{where} in the server's response is {type(value).__name__}, expected {expected.__name__}"
        )
    return value
