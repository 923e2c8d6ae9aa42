"""Mirroring on a real server: clients get their ensemble's answers, metrics the comparison."""

from pathlib import Path

import numpy as np

from tests.integration.conftest import Serve
from tests.integration.gateway import RED, classify, member_logits
from tests.integration.load import Load, until
from tests.server.onnx_repository import write_repository


def test_answers_are_the_ensembles_own_and_metrics_compare(serve: Serve, tmp_path: Path) -> None:
    folder = write_repository(write_repository(tmp_path, "pair"), "new")
    server = serve(folder, "--default-model", "pair", mirror="new", mirror_share=1)
    assert "  mirror new: 100% of requests, when idle" in server.announcement

    def read() -> dict[str, float]:
        with server.http() as http:
            lines = http.get("/metrics").text.splitlines()
        found = (line.split() for line in lines if line.startswith("coserve_mirror_"))
        return {name.removeprefix("coserve_mirror_"): float(value) for name, value in found}

    with Load(server) as load:
        load.wait_for_more()
    assert load.failures == []
    expected = member_logits(folder, "pair", (1, 0, 0)).mean(axis=0)
    for answer in load.answers:
        found = {one["class_id"]: one["logit"] for one in answer["results"][0]["predictions"]}
        np.testing.assert_allclose([found[index] for index in range(4)], expected, atol=1e-4)
    classify(server, RED).raise_for_status()
    labels = 'mirror="new",model="pair",'
    asked = len(load.answers) + 1

    def count() -> float:
        return sum(value for name, value in read().items() if name.startswith("requests_total"))

    until(lambda: count() == asked)
    counted = read()
    images = counted[f'requests_total{{{labels}outcome="answered",version="1"}}']
    assert images > 0
    assert counted[f'images_total{{{labels}version="1"}}'] == images
    same = expected.argmax() == member_logits(folder, "new", (1, 0, 0)).mean(axis=0).argmax()
    assert counted[f'agreements_total{{{labels}version="1"}}'] == images * same
    for by in ("answer", "mirror"):
        assert counted[f'inference_seconds_count{{by="{by}",{labels}version="1"}}'] == images
