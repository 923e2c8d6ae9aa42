"""What browsers and programs get at `/`; tests/integration/page has a real browser."""

import re
from pathlib import Path
from typing import Any

import pytest

from coserve_server.api.app import build_app
from coserve_server.api.page.routes import prefers_html
from coserve_server.pipeline.classifier import Classifier
from coserve_server.security.key_ring import KeyRing
from coserve_server.security.keys import create_key
from coserve_server.settings import load_settings
from tests.server.api.application import Server, ask_app
from tests.server.fake_engine import FakeEngine, ensemble

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"}


def serve(**settings: Any) -> Server:
    return Server(FakeEngine(ensemble()), **settings)


def addresses(html: str) -> list[str]:
    return re.findall(r'(?:href|src)="(/[^"]*)"', html)


def test_browsers_get_a_page_whose_files_they_may_keep() -> None:
    server = serve()
    page = server.ask("GET", "/", headers=BROWSER)
    assert page.status_code == 200
    assert page.headers["Content-Type"].startswith("text/html")
    assert page.headers["Cache-Control"] == "no-cache"
    assert "Accept" in page.headers["Vary"]
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    found = addresses(page.text)
    assert {address.rpartition(".")[2] for address in found} == {"css", "js"}
    for address in found:
        answer = server.ask("GET", address)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["Cache-Control"]


def test_programs_are_told_what_is_here() -> None:
    server = serve()
    for headers in ({}, {"Accept": "application/json"}):
        landing = server.ask("GET", "/", headers=headers).json()
        assert landing["name"] == "Coserve"
        assert landing["version"]
        for path in landing["paths"].values():
            status = server.ask("GET", path).status_code
            assert status == (405 if path == "/v1/classify" else 200), path
    assert server.ask("HEAD", "/").status_code == 200


def test_the_page_can_be_switched_off() -> None:
    address = addresses(serve().ask("GET", "/", headers=BROWSER).text)[0]
    server = serve(page=False)
    assert server.ask("GET", "/", headers=BROWSER).json()["name"] == "Coserve"
    assert server.ask("GET", address).status_code == 404


@pytest.mark.parametrize("path", ["/page/0/page.css", "/page/{}/no.js", "/page/{}/../routes.py", "/page/{}/"])
def test_no_other_file_is_sent(path: str) -> None:
    server = serve()
    digest = addresses(server.ask("GET", "/", headers=BROWSER).text)[0].split("/")[2]
    answer = server.ask("GET", path.format(digest))
    assert answer.status_code == 404
    assert answer.headers["Content-Type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/images", "/images/", "/"])
def test_behind_a_prefix_every_address_has_it(path: str) -> None:
    server = serve(root_path="/images")
    page = server.ask("GET", path, headers=BROWSER)
    found = addresses(page.text)
    assert found
    assert all(address.startswith("/images/page/") for address in found)
    assert server.ask("GET", found[0]).status_code == 200
    assert server.ask("GET", path).json()["paths"]["classify"] == "/images/v1/classify"


def test_the_page_and_its_files_need_no_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    create_key(keys, "lab", "infer")
    settings = load_settings(repository="unused", api_keys_file=keys)
    app = build_app(Classifier(FakeEngine(ensemble()), settings, cores=1), KeyRing(keys))
    page = ask_app(app, "GET", "/", headers=BROWSER)
    assert page.status_code == 200
    assert "pair" not in page.text
    assert {ask_app(app, "GET", address).status_code for address in addresses(page.text)} == {200}


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (BROWSER["Accept"], True),
        ("text/html", True),
        ("TEXT/HTML; charset=utf-8; q=0.5, */*;q=0.1", True),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/json, text/html;q=0.9", False),
        ("text/html;q=0", False),
        ("text/html;q=often", False),
    ],
)
def test_a_client_that_names_html_prefers_it(accept: str, html: bool) -> None:
    assert prefers_html(accept) is html
