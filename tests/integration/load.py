"""Clients that send requests to a running server without pause, and checks of their responses."""

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.integration.conftest import Server
from tests.integration.gateway import RED, member_logits

CLIENTS = 4
RED_PIXELS = (1.0, 0.0, 0.0)
PNG = {"Content-Type": "image/png"}


class Load:
    """Clients that send requests until the context ends or `enough` is true, and keep the responses."""

    def __init__(
        self,
        server: Server,
        model: str = "pair",
        enough: Callable[[httpx.Client], bool] = lambda _: False,
        clients: int = CLIENTS,
    ) -> None:
        self.answers: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self._server = server
        self._model = model
        self._enough = enough
        self._stop = threading.Event()
        self._heard: set[int] = set()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]

    def _ask(self) -> None:
        query = {"model": self._model, "member_predictions": True}
        with self._server.http() as http:
            try:
                while not self._stop.is_set() and not self._enough(http):
                    response = http.post("/v1/classify", content=RED, headers=PNG, params=query)
                    self._heard.add(threading.get_ident())
                    if response.status_code == 200:
                        self.answers.append(response.json())
                    else:
                        self.failures.append(response.text)
            except httpx.TransportError as error:
                self.failures.append(repr(error))

    def wait_for_more(self) -> None:
        """Wait for responses to requests that are sent from now on."""
        reached = len(self.answers)
        until(lambda: len(self.answers) > reached + 2 * CLIENTS or bool(self.failures))

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        self.wait_for_more()
        # Each client has its connection now.
        until(lambda: len(self._heard) == len(self._threads) or bool(self.failures))
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition has not become true")


def logits_by_version(folder: Path, versions: range, name: str = "pair") -> dict[str, np.ndarray]:
    """Return the logits of the red image for each version, `[S, C]`; all versions differ."""
    known = {str(version): member_logits(folder, name, RED_PIXELS, version) for version in versions}
    rows = list(known.values())
    assert all(np.abs(a - b).min(axis=1).max() > 0.01 for a, b in pairwise(rows))
    return known


def check_versions_are_not_mixed(answers: list[dict[str, Any]], known: dict[str, np.ndarray]) -> set[str]:
    """Check that all members of a response have the version that it names; return the versions seen."""
    for answer in answers:
        members = answer["results"][0]["member_predictions"]
        given = [
            [one["logit"] for one in sorted(members[name], key=lambda one: one["class_id"])]
            for name in sorted(members)
        ]
        np.testing.assert_allclose(given, known[answer["version"]], rtol=1e-4, atol=1e-4)
    return {answer["version"] for answer in answers}
