"""Ensembles are changed, broken, removed and unloaded while a real server answers under constant load."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

from tests.integration.conftest import Serve, Server
from tests.integration.gateway import RED, classify, member_logits, problem
from tests.server.onnx_repository import FAILS, add_version, read_config, write_config, write_repository

CLIENTS = 4
RED_PIXELS = (1.0, 0.0, 0.0)


class Load:
    """Clients that ask without a pause and keep every answer."""

    def __init__(self, server: Server, model: str) -> None:
        self.answers: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self._server, self._model = server, model
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def _ask(self) -> None:
        query = {"model": self._model, "member_predictions": True}
        with self._server.http() as http:
            while not self._stop.is_set():
                try:
                    response = http.post(
                        "/v1/classify", content=RED, headers={"Content-Type": "image/png"}, params=query
                    )
                except httpx.TransportError as error:
                    self.failures.append(repr(error))
                    return
                if response.status_code == 200:
                    self.answers.append(response.json())
                else:
                    self.failures.append(response.text)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def until(condition: Any) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("did not come to pass within a minute")


def description(server: Server, model: str = "pair") -> dict[str, Any]:
    with server.http() as http:
        return dict(http.get(f"/v1/models/{model}").raise_for_status().json())


def generations(folder: Path, versions: range, name: str = "pair") -> dict[str, np.ndarray]:
    """Each version's logits of the red image, `[S, C]`."""
    return {str(version): member_logits(folder, name, RED_PIXELS, version) for version in versions}


def check_each_of_one_generation(answers: list[dict[str, Any]], known: dict[str, np.ndarray]) -> set[str]:
    for answer in answers:
        members = answer["results"][0]["member_predictions"]
        given = [
            [one["logit"] for one in sorted(members[name], key=lambda one: one["class_id"])]
            for name in sorted(members)
        ]
        np.testing.assert_allclose(given, known[answer["version"]], rtol=1e-4, atol=1e-4)
    return {answer["version"] for answer in answers}


def test_every_answer_is_of_one_generation_and_none_is_lost(serve: Serve, tmp_path: Path) -> None:
    write_repository(tmp_path)
    server = serve(tmp_path, repository_poll_ms=30)
    versions = range(2, 10)
    with Load(server, "pair") as load:
        until(lambda: len(load.answers) > 10)
        for version in versions:
            add_version(tmp_path, "pair", version)
            until(lambda version=version: description(server)["version"] == str(version))
        reached = len(load.answers)
        until(lambda: len(load.answers) > reached + 10)
    assert load.failures == []
    known = generations(tmp_path, range(1, versions.stop))
    apart = [np.abs(known[str(v)] - known[str(v - 1)]).max() for v in versions]
    assert min(apart) > 0.01, "generations that give the same logits would prove nothing"
    assert check_each_of_one_generation(load.answers, known) == set(known)
