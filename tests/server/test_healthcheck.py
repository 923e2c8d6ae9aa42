"""The health check of containers, run as a script in this process."""

import runpy
import sys
import urllib.request
from http.client import BadStatusLine
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "server/healthcheck.py"


def check(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], error: Exception | None = None) -> str:
    """Return the URL that the script asks for."""
    asked: list[str] = []

    class Opener:
        def open(self, url: str, **_: Any) -> Any:
            asked.append(url)
            if error is not None:
                raise error
            return self

        def close(self) -> None:
            pass

    monkeypatch.setattr(urllib.request, "build_opener", lambda *_: Opener())
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "/readyz"])
    for name in ("COSERVE_PORT", "COSERVE_TLS_CERTIFICATE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    runpy.run_path(str(SCRIPT))
    return asked[0]


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({}, "http://127.0.0.1:8000/readyz"),
        ({"COSERVE_PORT": "9000"}, "http://127.0.0.1:9000/readyz"),
        ({"COSERVE_PORT": ""}, "http://127.0.0.1:8000/readyz"),
        ({"COSERVE_PORT": "tcp://10.96.12.7:8001"}, "http://127.0.0.1:8000/readyz"),
        ({"COSERVE_TLS_CERTIFICATE": "server.pem"}, "https://127.0.0.1:8000/readyz"),
    ],
)
def test_asks_where_the_server_listens(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str
) -> None:
    assert check(monkeypatch, variables) == url


@pytest.mark.parametrize("error", [OSError("refused"), BadStatusLine("\x15\x03")])
def test_fails_in_one_line(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(SystemExit, match=r"^/readyz: ") as ended:
        check(monkeypatch, {}, error)
    assert ended.value.code not in (0, None)
