"""The log, as text and as JSON."""

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from coserve_server.observability import logs
from coserve_server.settings import load_settings
from tests.server.api.application import Server
from tests.server.fake_engine import BuggyEngine, FakeEngine, ensemble, png, run

CLASSIFY: dict[str, Any] = {"content": png(), "headers": {"Content-Type": "image/png"}}


class Log:
    """The process's log, written to a stream that the test reads."""

    def __init__(self, stream: io.StringIO) -> None:
        self.stream = stream

    def configure(self, worker: int | None = None, **changes: Any) -> None:
        logs.configure(load_settings(repository="unused", **changes), worker)
        (handler,) = logging.getLogger().handlers
        assert isinstance(handler, logging.StreamHandler)
        handler.setStream(self.stream)

    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()

    def documents(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines()]

    def access(self) -> dict[str, Any]:
        (line,) = (one for one in self.documents() if one["logger"] == "coserve_server.access")
        return line


@pytest.fixture
def log() -> Iterator[Log]:
    root = logging.getLogger()
    own = logging.getLogger("coserve_server")
    handlers = root.handlers[:]
    level = own.level
    root.handlers[:] = []
    yield Log(io.StringIO())
    root.handlers[:] = handlers
    own.setLevel(level)
    logging.captureWarnings(False)


def server(**changes: Any) -> Server:
    return Server(FakeEngine(ensemble(), scripts=[[run(0, 1, [1, 3]), run(0, 1, [3, 1])]]), **changes)


def test_an_answer_is_one_json_line(log: Log) -> None:
    log.configure(log_format="json")
    response = server().ask("POST", "/v1/classify?top_k=1", **CLASSIFY)
    (line,) = log.documents()
    assert line["logger"] == "coserve_server.access"
    assert line["level"] == "INFO"
    assert line["request_id"] == response.headers["X-Request-Id"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/classify", 200)
    assert (line["model"], line["images"]) == ("pair", 1)
    assert line["duration_ms"] > 0
    assert datetime.fromisoformat(line["timestamp"]).utcoffset() == timedelta(0)


def test_problem_and_access_line_share_id_and_instance(log: Log) -> None:
    log.configure(log_format="json")
    response = server().ask("GET", "/v1/models/cow", headers={"X-Request-Id": "from-the-client"})
    assert response.headers["X-Request-Id"] == "from-the-client"
    problem, access = log.documents()
    assert problem["request_id"] == access["request_id"] == "from-the-client"
    assert problem["instance"] == access["instance"] == response.json()["instance"]
    assert access["problem"] == "unknown-model"
    assert "model" not in access


@pytest.mark.parametrize("brought", ["", "two words", "x" * 129, "caf\xe9", "tab\t"])
def test_an_invalid_id_is_replaced(brought: str) -> None:
    headers = [(b"X-Request-Id", brought.encode("latin-1"))]
    given = server().ask("GET", "/healthz", headers=headers).headers["X-Request-Id"]
    assert given != brought
    assert len(given) == 32


def test_every_request_has_an_id_of_its_own() -> None:
    own = server()
    assert len({own.ask("GET", "/healthz").headers["X-Request-Id"] for _ in range(3)}) == 3


def test_an_exception_is_one_json_line(log: Log) -> None:
    log.configure(log_format="json")
    try:
        raise RuntimeError("of two\nlines")
    except RuntimeError:
        logging.getLogger("uvicorn.error").exception("Exception in ASGI application")
    (line,) = log.documents()
    assert line["level"] == "ERROR"
    assert "RuntimeError: of two\nlines" in line["exception"]


def test_a_bug_is_reported_with_the_request_id(log: Log) -> None:
    log.configure(log_format="json")
    response = Server(BuggyEngine(ensemble())).ask(
        "POST", "/v1/classify", content=png(), headers={"Content-Type": "image/png", "X-Request-Id": "bug"}
    )
    assert response.status_code == 500
    assert response.headers["X-Request-Id"] == "bug"
    access = log.access()
    assert (access["status"], access["problem"]) == (500, "internal")
    assert response.json()["instance"] == access["instance"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert {line.get("request_id") for line in log.documents()} == {"bug"}


def test_text_for_people(log: Log) -> None:
    log.configure()
    response = server().ask("GET", "/v1/models", headers={"X-Request-Id": "seen"})
    assert response.status_code == 200
    (line,) = log.lines()
    assert line.startswith("INFO:     GET /v1/models 200 ")
    assert line.endswith(" ms [seen]")


def test_clients_cannot_forge_lines(log: Log) -> None:
    log.configure()
    files = {"files": ("a\nERROR:     \x1b[31mforged", b"x")}
    assert server().ask("POST", "/v1/classify", files=files).status_code == 400
    assert server().ask("GET", "/a%0AERROR:%20forged").status_code == 404
    try:
        raise RuntimeError("quoted:\nERROR:     \x1b[31mforged")
    except RuntimeError:
        logging.getLogger("coserve_server").exception("a request failed")
    assert len(log.lines()) > 4
    assert [line for line in log.lines() if line.startswith("ERROR")] == ["ERROR:     a request failed"]
    assert not any("\x1b" in line for line in log.lines())


def test_the_access_log_can_be_switched_off(log: Log) -> None:
    log.configure(log_format="json")
    response = server(access_log=False).ask("POST", "/v1/classify", **CLASSIFY)
    assert response.headers["X-Request-Id"]
    assert log.lines() == []


@pytest.mark.parametrize("form", ["text", "json"])
def test_less_severe_messages_are_left_out(log: Log, form: str) -> None:
    log.configure(log_format=form, log_level="warning")
    server().ask("GET", "/v1/models/cow")
    assert log.lines() == []


def test_nothing_of_the_images_is_logged(log: Log) -> None:
    log.configure(log_format="json", log_level="debug")
    server().ask("POST", "/v1/classify", files={"files": ("a.png", png())})
    server().ask("POST", "/v1/classify", json={"images": ["c2VjcmV0IHBpeGVscw=="]})
    text = log.stream.getvalue()
    assert "c2VjcmV0" not in text
    assert "secret pixels" not in text
    assert "IHDR" not in text


def test_lines_name_the_worker_if_there_are_several(log: Log) -> None:
    for worker, log_format in ((2, "text"), (2, "json"), (None, "text")):
        log.configure(worker, log_format=log_format)
        logging.getLogger("coserve_server").warning("something: %s", "odd")
    first, second, third = log.lines()
    assert first == "WARNING:     worker 2: something: odd"
    assert (json.loads(second)["worker"], json.loads(second)["message"]) == (2, "something: odd")
    assert third == "WARNING:     something: odd"
