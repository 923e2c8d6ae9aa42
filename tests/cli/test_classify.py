import json
import os
import pty
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner, Result

from coserve_cli.main import app


class Handler(BaseHTTPRequestHandler):
    """Rejects images that are empty or whose bytes are `bad`, and requests of more than `limit` images."""

    server: "Server"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts: Any = message_from_bytes(
            f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + body
        )
        files = [(part.get_filename(), part.get_payload(decode=True)) for part in parts.get_payload()]
        self.server.requests.append([name for name, _ in files])
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        self.server.queries.append(query)
        self.server.arrived.set()
        self.server.may_answer.wait(20)
        if bad := [name for name, data in files if data in (b"", b"bad")]:
            return self.problem(400, f"{bad[0]} is not an image")
        if len(files) > self.server.limit:
            return self.problem(413, "the request is larger than 1 MB")
        return self.answer(
            200, "application/json", reply([name for name, _ in files], query, self.server.lost)
        )

    def problem(self, status: int, detail: str) -> None:
        self.answer(
            status, "application/problem+json", {"title": "Rejected", "status": status, "detail": detail}
        )

    def answer(self, status: int, kind: str, document: object) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.requests: list[list[str]] = []
        self.queries: list[dict[str, str]] = []
        self.limit = 1000
        self.lost = False
        self.arrived = threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def handle_error(self, *args: object) -> None:
        """Ignore errors: an interrupted command has closed its connection."""


def reply(names: list[str], query: dict[str, str], lost: bool) -> dict[str, Any]:
    predictions = [
        {"label": "cat", "class_id": 3, "probability": 0.931, "logit": 7.1},
        {"label": "dog", "class_id": 5, "probability": 0.05, "logit": 2.5},
    ][: int(query["top_k"])]
    of_members = {"E_member0": predictions[:1]} if query["member_predictions"] == "true" else None
    member = {"used": True, "device": "cpu:0", "start_ms": 0, "end_ms": 9.5, "error": None}
    return {
        "model": "E",
        "version": "1",
        "degraded": lost,
        "measured_top1": None if lost else 0.93,
        "overlap": 1.93,
        "members": [
            member | {"name": "E_member0"},
            member | {"name": "E_member1", "used": not lost, "error": "deadline" if lost else None},
        ],
        "timings_ms": {
            "decode": 1.0,
            "preprocess": 0.5,
            "queue": 0,
            "inference": 17.4,
            "combine": 0.1,
            "total": 20,
        },
        "results": [
            {
                "filename": name,
                "predictions": predictions,
                "uncertainty": {"entropy": 0.3, "disagreement": 0.1},
                "member_predictions": of_members,
            }
            for name in names
        ],
    }


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as loopback:
        monkeypatch.setenv("COSERVE_URL", loopback.url)
        threading.Thread(target=loopback.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield loopback
        loopback.shutdown()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "photos"
    (images / "deep").mkdir(parents=True)
    for name in ("b.JPG", "a.png", "deep/c.webp", "notes.txt"):
        (images / name).write_bytes(name.encode())
    (images / "folder.jpg").mkdir()
    return images


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["classify", *map(str, arguments)])


def test_prints_a_line_per_image_and_a_summary(server: Server, folder: Path) -> None:
    result = run(folder / "a.png", folder / "b.JPG", "--top-k", 2, "--model", "E")

    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == [
        f"{folder}/a.png  cat 93.1%  dog 5.0%",
        f"{folder}/b.JPG  cat 93.1%  dog 5.0%",
        "E version 1: 2 members, overlap 1.93",
    ]
    assert result.stderr == ""
    assert server.queries == [{"top_k": "2", "member_predictions": "false", "model": "E"}]


def test_searches_folders_and_batches(server: Server, folder: Path) -> None:
    result = run(folder, folder / "notes.txt", "--batch-size", 3)
    assert result.exit_code == 0
    assert sorted(server.requests) == [["a.png", "b.JPG", "c.webp"], ["notes.txt"]]


def test_keeps_requests_below_the_server_s_limit(server: Server, tmp_path: Path) -> None:
    for name, mebibytes in (("a.png", 9), ("b.png", 6), ("c.png", 2), ("d.png", 20), ("e.png", 1)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(mebibytes * 2**20)
    assert run(tmp_path).exit_code == 0
    assert sorted(server.requests) == [["a.png", "b.png"], ["c.png"], ["d.png"], ["e.png"]]


def test_prints_json_lines(server: Server, folder: Path) -> None:
    result = run(folder / "a.png", folder / "b.JPG", "--json", "--top-k", 1, "--member-predictions")

    lines = [json.loads(line) for line in result.stdout.splitlines()]
    cat = {"label": "cat", "class_id": 3, "probability": 0.931, "logit": 7.1}
    assert [line["file"] for line in lines] == [f"{folder}/a.png", f"{folder}/b.JPG"]
    assert lines[0] == {
        "file": f"{folder}/a.png",
        "model": "E",
        "version": "1",
        "degraded": False,
        "missing": [],
        "overlap": 1.93,
        "predictions": [cat],
        "uncertainty": {"entropy": 0.3, "disagreement": 0.1},
        "member_predictions": {"E_member0": [cat]},
    }


def test_shows_member_predictions(server: Server, folder: Path) -> None:
    lines = run(folder / "a.png", "--member-predictions").stdout.splitlines()
    assert lines[1] == f"{'  E_member0':<{len(str(folder / 'a.png'))}}  cat 93.1%"


def test_names_missing_members(server: Server, folder: Path) -> None:
    server.lost = True
    result = run(folder / "a.png", "--json")
    assert json.loads(result.stdout)["missing"] == ["E_member1"]
    assert result.stderr == "warning: 1 of 1 replies lack members: E_member1 (deadline)\n"
    assert result.exit_code == 0


def test_classifies_the_others_if_one_image_is_bad(server: Server, folder: Path) -> None:
    (folder / "b.JPG").write_bytes(b"bad")
    result = run(folder)

    assert result.exit_code == 1
    assert [line.split()[0] for line in result.stdout.splitlines()] == [
        f"{folder}/a.png",
        f"{folder}/deep/c.webp",
        "E",
    ]
    assert result.stderr == f"error: {folder}/b.JPG: b.JPG is not an image (HTTP 400)\n"
    assert server.requests == [["a.png", "b.JPG", "c.webp"], ["a.png"], ["b.JPG"], ["c.webp"]]


def test_reads_a_pipe_once(server: Server, folder: Path) -> None:
    end, start = os.pipe()
    os.write(start, b"image")
    os.close(start)
    (folder / "b.JPG").write_bytes(b"bad")
    result = run(f"/dev/fd/{end}", folder / "none.png", folder / "b.JPG")
    os.close(end)
    assert result.stdout.startswith(f"/dev/fd/{end} ")
    assert [line.split()[1].rstrip(":") for line in result.stderr.splitlines()] == [
        "cannot",
        f"{folder}/b.JPG",
    ]


def test_sends_smaller_requests_if_one_is_too_large(server: Server, folder: Path) -> None:
    server.limit = 1
    assert run(folder).exit_code == 0

    server.limit = 0
    result = run(folder / "a.png")
    assert result.exit_code == 1
    assert "a.png: the request is larger than 1 MB (HTTP 413)" in result.stderr
    assert result.stdout == ""


def test_reads_standard_input(server: Server) -> None:
    result = CliRunner().invoke(app, ["classify", "-"], input=b"image")
    assert result.stdout.startswith("-  cat 93.1%")
    assert server.requests == [["stdin"]]


def test_reports_what_it_cannot_send(tmp_path: Path, server: Server) -> None:
    result = run(tmp_path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: no images in {tmp_path}: no file there ends in .apng .avif .bmp")

    result = run(tmp_path / "none.jpg")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: cannot read {tmp_path}/none.jpg: No such file or directory\n"

    assert run().exit_code == 2
    assert server.requests == []


def test_reports_an_absent_server(folder: Path) -> None:
    result = run(folder, "--url", "http://127.0.0.1:9")
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no server answers at http://127.0.0.1:9")
    assert len(result.stderr.splitlines()) == 1


def command(*arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name("coserve")), "classify", *map(str, arguments)]


def on_a_terminal(*arguments: object) -> SimpleNamespace:
    """Run the command with only stderr on a terminal."""
    leader, follower = pty.openpty()
    done = subprocess.run(
        command(*arguments),
        stderr=follower,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 65536):
            shown += chunk
    except OSError:  # Linux reports the end of a terminal so
        pass
    os.close(leader)
    return SimpleNamespace(returncode=done.returncode, stdout=done.stdout, terminal=shown.decode())


def test_shows_progress_on_a_terminal_only_and_keeps_results_clean(server: Server, folder: Path) -> None:
    shown = on_a_terminal(folder, "--batch-size", 1)
    assert shown.returncode == 0
    assert "classifying" in shown.terminal
    assert "100%" in shown.terminal
    assert "\x1b" not in shown.stdout
    assert len(shown.stdout.splitlines()) == 4

    assert on_a_terminal(folder).terminal == ""


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8"])
def test_escapes_what_the_output_cannot_show(server: Server, folder: Path, encoding: str) -> None:
    image = (folder / "a.png").rename(folder / "ü图.png")
    done = subprocess.run(
        command(image), env={**os.environ, "PYTHONIOENCODING": encoding}, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(str(image).encode(encoding, "backslashreplace"))


def test_stops_quietly_when_interrupted(server: Server, folder: Path) -> None:
    server.may_answer.clear()
    process = subprocess.Popen(
        command(folder, "--batch-size", 1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert server.arrived.wait(20)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=20)
    server.may_answer.set()
    assert (process.returncode, stdout, stderr.strip()) == (130, "", "")
