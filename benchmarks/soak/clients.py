"""The well-behaved clients of the soak test, and the counts of all outcomes."""

import asyncio
import base64
import gzip
import json
import math
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import httpx
import numpy as np

from benchmarks.soak.models import Generation, Models
from coserve_client import calls
from coserve_client.tensors import HEADER_LENGTH, read_inference

Action = tuple[str, Coroutine[Any, Any, str]]
"""A kind of action, and a coroutine that does it and returns its outcome."""

FORMS = ("v1 file", "v1 multipart", "v1 JSON", "v2 JSON", "v2 gzip", "v2 binary")
TOLERANCE = 1e-3
"""Tolerance of a logit: batches of different sizes sum in different orders."""
UNREAD_BODY_S = 10
SCRAPED = ("/healthz", "/readyz", "/metrics", "/v1/models", "/v2/models/stats", "/openapi.json")


class WrongAnswerError(Exception):
    """A response differs from what the networks give."""


class UnexpectedError(Exception):
    """A response has an unexpected status."""


class Clients:
    """Clients with valid requests, until `ends`, and the counts of all outcomes by kind of action."""

    def __init__(self, port: int, models: Models, images: Sequence[bytes]) -> None:
        self.port = port
        self.models = models
        self.images = images
        self.ends = math.inf
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.failures: list[str] = []
        self.burst_ended = -math.inf
        # The server closes idle connections after 5 s; a request must not use one that is being closed.
        limits = httpx.Limits(keepalive_expiry=2)
        url = f"http://127.0.0.1:{port}"
        self.http = httpx.AsyncClient(base_url=url, timeout=90, limits=limits, trust_env=False)

    async def repeat(self, action: Callable[[], Action], pause_s: float) -> None:
        """Do something again and again, at random times, and count the outcomes."""
        while (left := self.ends - time.monotonic()) > 0:
            await asyncio.sleep(min(left, random.expovariate(1 / pause_s)))
            await self.attempt(*action())

    async def attempt(self, kind: str, work: Coroutine[Any, Any, str]) -> None:
        """Do something once, and count the outcome."""
        try:
            outcome = await work
        # Any error is an outcome; the other clients go on.
        except Exception as error:
            outcome = "wrong" if isinstance(error, WrongAnswerError) else "unexpected"
            self.failures.append(f"{kind}: {type(error).__name__}: {str(error)[:300]}")
        self.counts[kind][outcome] += 1

    def overloaded(self, status: int, began: float) -> bool:
        """Return whether a request that began then was refused because of a burst, which is correct."""
        return status == 503 and began < self.burst_ended

    def good(self) -> Action:
        """Return a valid request, which must be answered correctly."""
        form = random.choice(FORMS)
        count = 1 if form == "v1 file" else random.choice((1, 1, 2, 8) if "v2" in form else (1, 1, 2, 8, 64))
        return form, self.ask(form, random.choices(range(len(self.images)), k=count))

    async def ask(self, form: str, chosen: list[int]) -> str:
        """Classify the images with these indices, and check the response."""
        name = random.choice(list(self.models.members))
        began = time.monotonic()
        before = self.models.allowed[name]
        response = await self.http.send(self.build_request(form, name, chosen))
        if self.overloaded(response.status_code, began):
            return "overloaded"
        self.check(form, response, chosen, (*before, *self.models.allowed[name]))
        return "ok"

    def build_request(self, form: str, name: str, chosen: list[int]) -> httpx.Request:
        """Return a request in one of the forms."""
        files = [self.images[index] for index in chosen]
        tensors = self.models.tensors[chosen]
        if form == "v1 multipart":
            return calls.classify(files, model=name, top_k=10).request(self.http)
        if form == "v2 binary":
            return calls.infer(name, tensors).request(self.http)
        if form.startswith("v1"):
            images = [base64.b64encode(file).decode() for file in files]
            file = {"content": files[0], "headers": {"Content-Type": "image/jpeg"}}
            body: dict[str, Any] = file if form == "v1 file" else {"json": {"images": images}}
            return self.http.build_request("POST", f"/v1/classify?model={name}&top_k=10", **body)
        tensor = {"name": "images", "shape": tensors.shape, "datatype": "FP32"}
        document = json.dumps({"inputs": [tensor | {"data": tensors.ravel().tolist()}]}).encode()
        body = {"content": document}
        if form == "v2 gzip":
            body = {"content": gzip.compress(document, 1), "headers": {"Content-Encoding": "gzip"}}
        return self.http.build_request("POST", f"/v2/models/{name}/infer", **body)

    def check(
        self, form: str, response: httpx.Response, chosen: list[int], allowed: Sequence[Generation]
    ) -> Generation:
        """Return the allowed generation that gave the response.

        Raises:
            UnexpectedError: the status is not 200.
            WrongAnswerError: no allowed generation gives this response.
        """
        if response.status_code != 200:
            raise UnexpectedError(f"{response.status_code} {response.text}")
        if form == "v2 binary":
            inference = read_inference(response.content, response.headers[HEADER_LENGTH])
            version = inference.version
            degraded = inference.degraded
            logits = inference.logits
        elif form.startswith("v2"):
            document = response.json()
            version = document["model_version"]
            degraded = document["parameters"]["degraded"]
            logits = np.reshape(document["outputs"][0]["data"], document["outputs"][0]["shape"])
        else:
            document = response.json()
            version = document["version"]
            degraded = document["degraded"]
            shown = [result["predictions"] for result in document["results"]]
            ordered = [sorted(one, key=lambda p: int(p["class_id"])) for one in shown]
            logits = np.array([[p["logit"] for p in one] for one in ordered])
            if [one[0]["class_id"] for one in shown] != logits.argmax(axis=1).tolist():
                raise WrongAnswerError("the first class does not have the highest logit")
        for one in allowed:
            expected = one.logits[chosen]
            correct = logits.shape == expected.shape and np.allclose(logits, expected, atol=TOLERANCE)
            if one.version == version and correct and not degraded:
                return one
        raise WrongAnswerError(f"version {version}, degraded {degraded}: {logits.tolist()}")

    async def send(self, path: str, body: dict[str, Any], expected: set[int]) -> str:
        """Send a request that the server may refuse."""
        began = time.monotonic()
        try:
            response = await self.http.post(path, **body)
        except httpx.TransportError:
            # The server reads the rest of a refused body for this long, and then closes the connection.
            if 413 in expected and time.monotonic() - began > UNREAD_BODY_S:
                return "refused"
            raise
        if self.overloaded(response.status_code, began):
            return "overloaded"
        if response.status_code not in expected:
            raise UnexpectedError(f"{response.status_code} {response.text}")
        return "ok" if response.status_code == 200 else "refused"

    def scrape(self) -> Action:
        """Return a request of a monitoring system."""
        return "scrape", self.get(random.choice(SCRAPED))

    async def get(self, path: str) -> str:
        """Get a page that must exist."""
        (await self.http.get(path)).raise_for_status()
        return "ok"

    async def reload(self, name: str, in_place: bool) -> str:
        """Change an ensemble's files, and wait until its new networks answer."""
        new = self.models.change(name, in_place)
        for _ in range(600):
            request = self.build_request("v1 JSON", name, [0, 1])
            response = await self.http.send(request)
            if response.status_code != 503 and (
                self.check("v1 JSON", response, [0, 1], self.models.allowed[name]) == new
            ):
                self.models.settle(name)
                return "ok"
            await asyncio.sleep(0.1)
        raise UnexpectedError(f"{name}: the new networks are not served")
