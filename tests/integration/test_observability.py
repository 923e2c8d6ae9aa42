"""A running server's metrics, log and traces show exactly the requests that it was sent."""

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.integration.conftest import COSERVE, Serve
from tests.integration.gateway import LIME, RED, classify
from tests.server.onnx_repository import FAILS, write_repository
from tests.server.otlp import attributes, collector


def scrape(http: httpx.Client, key: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    response = http.get("/metrics", headers={"X-API-Key": key})
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/plain")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(response.text)
        for sample in family.samples
    }


def test_all_of_it_is_exactly_what_was_sent(serve: Serve, tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "models", "pair", max_batch_size=4)
    write_repository(repository, "trio", members=3, faults={1: FAILS})
    keys = tmp_path / "keys"
    create = [COSERVE, "keys", "create", "lab", "--file", keys]
    key = subprocess.run(create, capture_output=True, text=True, check=True).stdout.strip()
    with collector() as traces, (tmp_path / "log").open("w") as log:
        server = serve(
            repository,
            log=log,
            log_level="info",
            log_format="json",
            api_keys_file=keys,
            min_members=2,
            otlp_endpoint=traces.url,
        )
        with server.http() as http:
            http.headers["X-API-Key"] = key
            for _ in range(3):
                send(http, "pair", RED)
            send(http, "pair", *[LIME] * 6)
            assert send(http, "trio", RED).json()["degraded"] is True
            assert send(http, "pair", b"no image").status_code == 400
            assert http.get("/v1/models/cow").status_code == 404
            said = scrape(http, key)
        assert classify(server, RED, model="pair").status_code == 401
        with server.http() as http:
            assert http.get("/metrics").status_code == 401
        server.stop()
    check_metrics(said)
    check_log((tmp_path / "log").read_text(), key)
    assert len(traces.named("POST /v1/classify")) == 6
    assert len(traces.named("member trio_member1")) == 1
    models = [attributes(span)["coserve.model"] for span in traces.named("POST /v1/classify")]
    assert sorted(models) == ["pair"] * 5 + ["trio"]


def send(http: httpx.Client, model: str, *images: bytes) -> httpx.Response:
    files = [("files", (f"{index}.png", image)) for index, image in enumerate(images)]
    return http.post("/v1/classify", files=files, params={"model": model})


def check_metrics(said: dict[tuple[str, frozenset[tuple[str, str]]], float]) -> None:
    def value(name: str, **labels: str) -> float | None:
        return said.get((f"coserve_{name}", frozenset(labels.items())))

    route = {"route": "/v1/classify"}
    assert value("requests_total", model="pair", status="200", **route) == 4
    assert value("requests_total", model="pair", status="400", **route) == 1
    assert value("requests_total", model="trio", status="200", **route) == 1
    assert value("requests_total", model="", status="404", route="/v1/models/{name}") == 1
    assert value("requests_refused_total", reason="bad-image", **route) == 1
    assert value("request_duration_seconds_count", model="pair") == 5
    assert value("queue_duration_seconds_count", model="pair") == 4
    assert value("images_total", model="pair") == 9
    # Six images take two batches of at most four.
    assert value("batch_size_images_count", model="pair") == 5
    assert value("batch_size_images_sum", model="pair") == 9
    assert value("batch_size_images_bucket", model="pair", le="1.0") == 3
    assert value("member_overlap_ratio_count", model="pair") == 5
    assert value("member_duration_seconds_count", model="pair", member="pair_member1") == 5
    assert value("degraded_answers_total", model="pair") == 0
    assert value("degraded_answers_total", model="trio") == 1
    assert value("member_errors_total", model="trio", member="trio_member1", kind="failed") == 1
    assert value("member_duration_seconds_count", model="trio", member="trio_member1") is None
    for model, quorum, members in ("pair", 2, 2), ("trio", 2, 3):
        assert value("model_ready", model=model, version="1") == 1
        assert value("model_quorum", model=model, version="1") == quorum
        assert value("model_members", model=model, version="1") == members
    assert value("requests_in_flight") == 0
    assert said["process_resident_memory_bytes", frozenset()] > 0


def check_log(text: str, key: str) -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in text.splitlines()]
    assert key not in text
    assert {"uvicorn.error", "coserve_server.access"} <= {line["logger"] for line in lines}
    access = [line for line in lines if line["logger"] == "coserve_server.access"]
    assert [(line["path"], line["status"], line.get("model"), line.get("images")) for line in access] == [
        *[("/v1/classify", 200, "pair", 1)] * 3,
        ("/v1/classify", 200, "pair", 6),
        ("/v1/classify", 200, "trio", 1),
        ("/v1/classify", 400, "pair", None),
        ("/v1/models/cow", 404, None, None),
        ("/metrics", 200, None, None),
        ("/v1/classify", 401, None, None),
        ("/metrics", 401, None, None),
    ]
    assert [line.get("key") for line in access] == ["lab"] * 8 + [None] * 2
    assert len({line["request_id"] for line in access}) == len(access)
    for line in access[5:7]:
        (problem,) = (one for one in lines if one.get("instance") == line["instance"] and one is not line)
        assert problem["request_id"] == line["request_id"]
