"""The OpenAPI document: FastAPI's, with every schema that it refers to."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.routing import Route

_LOCAL = "#/$defs/"
_SHARED = "#/components/schemas/"


def install(app: FastAPI) -> None:
    """Complete the application's document; call this after everything that adds to it."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = generate()
            hoist_definitions(app.openapi_schema)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's manual does
    app.router.routes.insert(0, _route(app))


def _route(app: FastAPI) -> Route:
    """Return a route that renders the document only once, since that takes longer than many requests."""
    written: dict[str, bytes] = {}

    async def openapi(request: Request) -> Response:
        prefix = request.scope.get("root_path", "").rstrip("/")
        if prefix not in written:
            document = app.openapi() | ({"servers": [{"url": prefix}]} if prefix else {})
            written[prefix] = bytes(JSONResponse(document).body)
        return Response(written[prefix], media_type="application/json")

    return Route(str(app.openapi_url), openapi, include_in_schema=False)


def hoist_definitions(document: dict[str, Any]) -> None:
    """Move the definitions inside schemas, which pydantic refers to as `#/$defs/…`, to the components.

    Raises:
        ValueError: two different schemas have the same name.
    """
    shared: dict[str, Any] = document.setdefault("components", {}).setdefault("schemas", {})
    local: dict[str, Any] = {}
    _hoist(document, local)
    for name, schema in local.items():
        if shared.setdefault(name, schema) != schema:
            raise ValueError(f"two schemas in the OpenAPI document are named {name}")


def _hoist(node: Any, found: dict[str, Any]) -> None:
    if isinstance(node, list):
        for item in node:
            _hoist(item, found)
    elif isinstance(node, dict):
        reference = node.get("$ref")
        if isinstance(reference, str) and reference.startswith(_LOCAL):
            node["$ref"] = _SHARED + reference.removeprefix(_LOCAL)
        for name, schema in node.pop("$defs", {}).items():
            _hoist(schema, found)
            if found.setdefault(name, schema) != schema:
                raise ValueError(f"two schemas in the OpenAPI document are named {name}")
        for item in node.values():
            _hoist(item, found)
