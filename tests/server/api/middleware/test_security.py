"""Keys, roles, CORS and security headers; tests/integration/test_security.py has real connections."""

import base64
import hashlib
import logging
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI

from coserve_server.api.app import build_app
from coserve_server.api.middleware.security import OPEN
from coserve_server.api.requests.admin import require_admin
from coserve_server.pipeline.classifier import Classifier
from coserve_server.security.key_ring import KeyRing
from coserve_server.security.keys import Role, create_key
from coserve_server.settings import load_settings
from tests.server.api.application import ask_app, error
from tests.server.api.openapi import find_references
from tests.server.fake_engine import FakeEngine, ensemble

METHODS = {"get", "post"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def application(file: Path | None = None, **settings: Any) -> FastAPI:
    read = load_settings(repository="unused", api_keys_file=file, **settings)
    return build_app(Classifier(FakeEngine(ensemble()), read, cores=1), KeyRing(file) if file else None)


def test_every_path_but_health_and_the_api_s_description_needs_a_key(file: Path) -> None:
    create_key(file, "lab", "infer")
    app = application(file)
    answers = {
        (method, path): ask_app(app, method, re.sub(r"{\w+}", "pair", path)).status_code
        for path, operations in app.openapi()["paths"].items()
        for method in METHODS & operations.keys()
    }
    guarded = {status for (_, path), status in answers.items() if path not in OPEN}
    assert len(answers) > 15
    assert guarded == {401}
    for path in (
        "/metrics",
        "/no/such/path",
        "/v1/models/",
        "/healthz//",
        "http://test//healthz",
        "/v2/health/../models/pair",
    ):
        for method in ("GET", "HEAD"):
            assert ask_app(app, method, path).status_code == 401
    asset = "/static-offline-docs/swagger-ui.css"
    assert {ask_app(app, "GET", path).status_code for path in (*OPEN, asset)} == {200}


def test_keys_are_taken_from_either_header(file: Path) -> None:
    key = create_key(file, "lab", "infer")
    app = application(file)
    for headers in (
        {"Authorization": f"Bearer {key}"},
        {"Authorization": f"bearer  {key}"},
        {"X-API-Key": key},
        {"X-API-Key": key, "Authorization": "Basic dTpw"},
    ):
        assert ask_app(app, "GET", "/v1/models", headers=headers).status_code == 200
    for headers in (
        {"Authorization": key},
        {"Authorization": f"Basic {key}"},
        {"Authorization": "Bearer"},
        {"X-API-Key": ""},
        {"X-API-Key": "é"},
        {"X-API-Key": hashlib.sha256(key.encode()).hexdigest()},
        {"Cookie": f"X-API-Key={key}"},
    ):
        raw = {name: value.encode("latin-1") for name, value in headers.items()}
        assert ask_app(app, "GET", "/v1/models", headers=raw).status_code == 401
    assert ask_app(app, "GET", "/v1/models", params={"api_key": key}).status_code == 401


def test_a_refusal_says_how_to_ask(file: Path) -> None:
    create_key(file, "lab", "infer")
    app = application(file)
    none = ask_app(app, "GET", "/v1/models")
    assert none.headers["WWW-Authenticate"] == 'Bearer realm="coserve"'
    assert none.headers["Content-Type"] == "application/problem+json"
    assert none.json()["type"] == "/problems/unauthenticated"
    wrong = ask_app(app, "GET", "/v2/models/pair", headers={"Authorization": "Bearer coserve_wrong"})
    assert wrong.headers["WWW-Authenticate"] == 'Bearer realm="coserve", error="invalid_token"'
    assert error(wrong, 401) == "the API key is not valid"


def test_logs_may_have_the_name_and_never_the_key(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = create_key(file, "lab", "infer")
    app = application(file)
    seen: list[dict[str, Any]] = []

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)
        seen.append(scope["state"])

    with caplog.at_level(logging.DEBUG):
        assert ask_app(watched, "GET", "/v1/models", headers={"X-API-Key": key}).status_code == 200
        assert ask_app(app, "GET", "/v1/models", headers={"X-API-Key": f"{key}!"}).status_code == 401
        assert ask_app(app, "GET", "/v1/models/cow", headers={"X-API-Key": key}).status_code == 404
    assert seen[0]["api_key"].name == "lab"
    assert key not in str(seen)
    assert "/problems/unauthenticated" in caplog.text
    assert key not in caplog.text


def admin_call(app: FastAPI, **headers: str) -> httpx.Response:
    app.post("/change", dependencies=[Depends(require_admin)])(lambda: "changed")
    return ask_app(app, "POST", "/change", headers=headers)


@pytest.mark.parametrize(("role", "status"), [("infer", 403), ("admin", 200)])
def test_calls_that_change_the_server_need_the_role(file: Path, role: Role, status: int) -> None:
    key = create_key(file, "lab", role)
    response = admin_call(application(file), authorization=f"Bearer {key}")
    assert response.status_code == status
    if status == 403:
        assert response.json()["type"] == "/problems/forbidden"
        assert 'error="insufficient_scope", scope="admin"' in response.headers["WWW-Authenticate"]


def test_without_keys_only_programs_on_this_machine_may_change_the_server() -> None:
    assert admin_call(application()).status_code == 200
    assert admin_call(application(), origin="http://evil.example").status_code == 403
    assert admin_call(application(host="0.0.0.0", allow_public=True)).status_code == 403


def test_other_origins_may_call_only_if_the_settings_allow_it(file: Path) -> None:
    create_key(file, "lab", "infer")
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    friend = {"Origin": "https://a.example"}
    stranger = {"Origin": "https://b.example"}
    app = application(file, cors_origins="https://a.example, https://c.example")
    allowed = ask_app(app, "OPTIONS", "/v1/classify", headers=friend | preflight)
    assert allowed.status_code == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert allowed.headers["Access-Control-Allow-Headers"] == "x-api-key"
    refused = ask_app(app, "OPTIONS", "/v1/classify", headers=stranger | preflight)
    assert refused.status_code == 400
    unauthenticated = ask_app(app, "GET", "/v1/models", headers=friend)
    assert unauthenticated.status_code == 401
    assert unauthenticated.headers["Access-Control-Allow-Origin"] == "https://a.example"
    exposed = set(unauthenticated.headers["Access-Control-Expose-Headers"].split(", "))
    assert exposed >= {"X-Request-Id", "traceresponse", "Retry-After", "WWW-Authenticate"}
    assert unauthenticated.headers["X-Request-Id"], "a script can read it"
    for off in (ask_app(app, "GET", "/healthz", headers=stranger), ask_app(application(), "GET", "/healthz")):
        assert "Access-Control-Allow-Origin" not in off.headers


def test_browsers_run_nothing_on_the_pages_but_their_own_scripts() -> None:
    app = application()
    page = ask_app(app, "GET", "/docs")
    policy = dict(part.split(maxsplit=1) for part in page.headers["Content-Security-Policy"].split("; "))
    (inline,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    assert policy["script-src"] == f"'self' 'sha256-{digest}'"
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert page.headers["X-Frame-Options"] == "DENY"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 3
    assert all(address.startswith("/static-offline-docs/") for address in loaded)


def test_no_answer_may_be_taken_for_another_type() -> None:
    for path in ("/healthz", "/docs", "/v1/models/cow", "/v2", "/static-offline-docs/swagger-ui.css"):
        assert ask_app(application(), "GET", path).headers["X-Content-Type-Options"] == "nosniff"


def test_the_api_s_description_says_how_keys_are_sent(file: Path) -> None:
    assert "securitySchemes" not in application().openapi()["components"]
    create_key(file, "lab", "infer")
    described = application(file).openapi()
    assert described["components"]["securitySchemes"]["bearer"] == {"type": "http", "scheme": "bearer"}
    assert described["security"] == [{"bearer": []}, {"header": []}]
    assert described["paths"]["/healthz"]["get"]["security"] == []
    assert "security" not in described["paths"]["/v1/classify"]["post"]
    answers = described["paths"]["/v1/classify"]["post"]["responses"]
    assert "401" in answers
    assert "403" not in answers, "every key allows it"
    for path in ("/v1/models", "/metrics"):
        assert "401" in described["paths"][path]["get"]["responses"]
    assert "#/components/schemas/Problem" in find_references(described)
