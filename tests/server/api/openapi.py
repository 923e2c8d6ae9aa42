"""References in OpenAPI documents."""

from collections.abc import Iterator
from typing import Any


def find_references(document: dict[str, Any]) -> set[str]:
    """Return all references, and check that each leads to a schema."""
    found = set(_references(document))
    for reference in found:
        target = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
        assert "type" in target or "anyOf" in target
    return found


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)
