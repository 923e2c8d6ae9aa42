"""A server on this machine that answers `coserve classify`, without networks."""

import json
import threading
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

ALL = ["E_member0", "E_member1"]


class Handler(BaseHTTPRequestHandler):
    """Rejects images that are empty or whose bytes are `bad`, and requests of more than `limit` images."""

    server: "Server"

    def do_GET(self) -> None:
        name = "E" if self.path == "/v1/models" else self.path.rpartition("/")[2].partition("?")[0]
        described = model(name, self.server)
        listing = {"default": "E" if self.server.has_default else None, "models": [described, described]}
        self.answer(200, "application/json", listing if self.path == "/v1/models" else described)

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
        return self.answer(200, "application/json", reply([name for name, _ in files], query, self.server))

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
        self.stopped: dict[str, list[str]] | None = None
        """Members that answered an image, by file name, with early stopping; for others, all."""
        self.threshold: float | None = 0.97
        self.set_size = 2
        self.labels = ("cat", "dog")
        self.has_default = True
        self.members = 2
        self.uncertainty: dict[str, tuple[float, float]] = {}
        """Entropy and disagreement by file name."""
        self.arrived = threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()

    def handle_error(self, *args: object) -> None:
        """Ignore errors: an interrupted command has closed its connection."""


def model(name: str, server: Server) -> dict[str, Any]:
    return {
        "name": name,
        "version": "1",
        "ready": True,
        "quorum": server.members,
        "members": [f"{name}_member{index}" for index in range(server.members)],
        "weights": [1.0] * server.members,
        "max_batch_size": 64,
        "labels": ["ant", "bee", "cow", server.labels[0], "eel", server.labels[1]],
        "preprocessing": {},
        "provenance": {},
    }


def reply(names: list[str], query: dict[str, str], server: Server) -> dict[str, Any]:
    classes = [
        {"label": server.labels[0], "class_id": 3, "probability": 0.931, "logit": 7.1},
        {"label": server.labels[1], "class_id": 5, "probability": 0.05, "logit": 2.5},
    ]
    predictions = classes[: int(query["top_k"])]
    of_members = {"E_member0": predictions[:1]} if query["member_predictions"] == "true" else None
    sets = None
    if "coverage" in query:
        method = query.get("set_method", "lac")
        sets = {"coverage": float(query["coverage"]), "method": method, "threshold": server.threshold}
    member = {"used": True, "device": "cpu:0", "start_ms": 0, "end_ms": 9.5, "error": None}
    return {
        "model": "E",
        "version": "1",
        "degraded": server.lost,
        "measured_top1": None if server.lost else 0.93,
        "overlap": 1.93,
        "members": [
            member | {"name": "E_member0"},
            member
            | {"name": "E_member1", "used": not server.lost, "error": "deadline" if server.lost else None},
        ][: server.members],
        "timings_ms": {
            "decode": 1.0,
            "preprocess": 0.5,
            "queue": 0,
            "inference": 17.4,
            "combine": 0.1,
            "total": 20,
        },
        "prediction_sets": sets,
        "early_stopping": None if server.stopped is None else {"confidence": 0.8, "loss": 0.001},
        "results": [
            {
                "filename": name,
                "predictions": predictions,
                "uncertainty": dict(
                    zip(("entropy", "disagreement"), server.uncertainty.get(name, (0.3, 0.1)), strict=True)
                ),
                "member_predictions": of_members,
                "prediction_set": classes[: server.set_size] if sets and sets["threshold"] else None,
            }
            | ({} if server.stopped is None else {"members": server.stopped.get(name, ALL)})
            for name in names
        ],
    }
