"""Features of every route: HEAD, slashes at the end, path prefixes, the OpenAPI document."""

import base64
import hashlib
import re
from typing import Any

import pytest
from fastapi.routing import APIRoute
from starlette._utils import get_route_path

from coserve_server.api.openapi import hoist_definitions
from coserve_server.api.page.files import read_files
from coserve_server.api.requests.dependencies import route_path
from coserve_server.settings.listening import OWN_PATHS
from tests.server.api.application import INFER, Server, ask_app, document
from tests.server.api.openapi import find_references
from tests.server.fake_engine import FakeEngine, ReadingEngine, ensemble


@pytest.fixture(scope="module")
def server() -> Server:
    return Server(ReadingEngine(ensemble()))


STYLE = f"/page/{read_files().digest}/page.css"


def readable_paths(server: Server) -> set[str]:
    routes = [route for route in server.app.routes if isinstance(route, APIRoute) and "GET" in route.methods]
    paths = {
        route.path.replace("{name}", "pair").replace("{version}", "1") for route in (*routes, *nested(server))
    }
    return {*paths, "/openapi.json", "/static-offline-docs/swagger-ui.css", STYLE, "/metrics"}


def nested(server: Server) -> list[Any]:
    """Return the routes in the document, which newer versions of FastAPI keep in routers of their own."""
    described = server.app.openapi()["paths"].items()
    return [type("Described", (), {"path": path}) for path, methods in described if "get" in methods]


def test_head_is_get_without_a_body(server: Server) -> None:
    paths = readable_paths(server)
    assert {"/healthz", "/docs", "/v1/models/pair", "/v2/models/pair/versions/1/config"} <= paths
    for path in (*paths, "/v2/models/cow", "/v1/models/cow", "/nowhere"):
        get = server.ask("GET", path)
        head = server.ask("HEAD", path)
        assert (head.status_code, head.content) == (get.status_code, b""), path
        differing = {"x-request-id"} | (
            {"content-length"} if "problem" in get.text or path == "/metrics" else set()
        )
        for name in get.headers.keys() - differing:
            assert head.headers[name] == get.headers[name], (path, name)
        assert head.headers.keys() == get.headers.keys()


def test_head_is_refused_where_get_is(server: Server) -> None:
    for path in ("/v1/classify", INFER, "/v2/repository/index"):
        response = server.ask("HEAD", path)
        assert (response.status_code, response.headers["Allow"], response.content) == (405, "POST", b"")
    assert server.ask("POST", "/healthz").headers["Allow"] == "GET, HEAD"


def test_metrics_count_head_and_slashes_with_the_route_they_ask_for(server: Server) -> None:
    fresh = Server(server.engine)
    fresh.ask("HEAD", "/v1/models/pair/")
    line = 'coserve_requests_total{model="pair",route="/v1/models/{name}",status="200"} 1.0'
    assert line in fresh.ask("GET", "/metrics").text


def test_a_slash_at_the_end_changes_nothing(server: Server) -> None:
    for path in readable_paths(server) - {"/static-offline-docs/swagger-ui.css"}:
        assert server.ask("GET", f"{path}/").status_code == server.ask("GET", path).status_code, path
    body = document(binary=False)
    assert server.infer(f"{INFER}/", json=body).json()["outputs"] == server.infer(json=body).json()["outputs"]
    assert server.ask("GET", "/healthz//").status_code == 404


@pytest.mark.parametrize("prefix", ["", "/images", "/a/b.c"])
@pytest.mark.parametrize("is_stripped", [True, False])
def test_a_prefix_may_be_removed_by_the_proxy_or_not(prefix: str, is_stripped: bool) -> None:
    server = Server(FakeEngine(ensemble()), root_path=prefix)
    sent = "" if is_stripped else prefix
    page = server.ask("GET", f"{sent}/docs")
    assert f"url: '{prefix}/openapi.json'" in page.text
    for link in re.findall(r'(?:src|href)="(/.*?)"', page.text):
        assert server.ask("GET", link.removeprefix(prefix) if is_stripped else link).status_code == 200
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in page.headers["Content-Security-Policy"]
    described = server.ask("GET", f"{sent}/openapi.json").json()
    assert described.get("servers") == ([{"url": prefix}] if prefix else None)
    assert server.ask("GET", f"{sent}/v2/models/cow").json().keys() == {"error"}
    assert server.ask("GET", f"{sent}/v2/").json()["name"] == "coserve"
    assert server.ask("GET", f"{prefix}x/healthz").status_code == 404


def test_docs_of_a_mounted_application_may_run_their_script(server: Server) -> None:
    from fastapi import FastAPI

    site = FastAPI()
    site.mount("/below", server.app)
    page = ask_app(site, "GET", "/below/docs")
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert digest in page.headers["Content-Security-Policy"]


def test_every_reference_of_the_document_leads_to_a_schema(server: Server) -> None:
    assert "#/components/schemas/InputParameters" in find_references(server.get("/openapi.json"))


def test_the_document_is_written_once() -> None:
    server = Server(ReadingEngine(ensemble()))
    first = server.ask("GET", "/openapi.json").content
    server.app.openapi()["paths"].clear()
    assert server.ask("GET", "/openapi.json").content == first


def test_two_schemas_of_one_name_are_an_error() -> None:
    def describe(kind: str) -> dict[str, Any]:
        return {"$ref": "#/$defs/A", "$defs": {"A": {"type": kind}}}

    with pytest.raises(ValueError, match="named A"):
        hoist_definitions({"paths": [describe("string"), describe("number")]})
    with pytest.raises(ValueError, match="named A"):
        hoist_definitions(
            {"paths": [describe("string")], "components": {"schemas": {"A": {"type": "number"}}}}
        )


def test_the_document_says_what_is_taken(server: Server) -> None:
    described = server.get("/openapi.json")
    paths = described["paths"]
    classify = paths["/v1/classify"]["post"]
    infer = paths["/v2/models/{name}/infer"]["post"]
    for operation in (classify, infer):
        headers = {one["name"]: one["schema"] for one in operation["parameters"]}
        assert headers["Content-Encoding"]["enum"] == ["identity", "gzip", "x-gzip", "deflate"]
    assert headers["Inference-Header-Content-Length"]["pattern"] == "^[0-9]+$"
    content = classify["requestBody"]["content"]
    assert content["multipart/form-data"]["schema"]["additionalProperties"] is False
    assert content["application/json"]["schema"]["additionalProperties"] is False
    assert (
        content["application/json"]["schema"]["properties"]["images"]["items"]["contentEncoding"] == "base64"
    )
    inputs = infer["requestBody"]["content"]["application/json"]["schema"]["properties"]["inputs"]
    assert (inputs["minItems"], inputs["maxItems"]) == (1, 1)
    assert "default" not in described["components"]["schemas"]["Input"]["properties"]["parameters"]
    assert described["components"]["schemas"]["Input"]["properties"]["datatype"]["enum"] == ["FP32", "BYTES"]


@pytest.mark.parametrize("path", ["/a", "/a/", "/a/b", "/ab", "/ab/c", "/", "/b/a", "/a/a/b"])
@pytest.mark.parametrize("root", ["", "/a", "/a/b"])
def test_a_route_s_path_is_the_router_s(path: str, root: str) -> None:
    scope = {"path": path, "root_path": root}
    assert route_path(scope) == get_route_path(scope)


def test_no_prefix_can_begin_like_a_path_of_the_server(server: Server) -> None:
    assert {path.split("/")[1] for path in readable_paths(server)} == OWN_PATHS | {""}
