"""The clients of the soak test that are hostile, slow, or disconnect."""

import asyncio
import math
import random
import re
import socket
import struct
import time
from typing import Any

import httpx

from benchmarks.soak.clients import Action, Clients, UnexpectedError
from tests.images.hostile_images import REFUSED, SHOWN
from tests.integration.hostile_requests import HTTP, JSON, MULTIPART, STAGES, TENSORS

Request = tuple[str, dict[str, Any], set[int]]
"""Path, arguments for httpx, and the expected statuses."""

IMAGE = {"Content-Type": "image/jpeg"}
PATIENCE_S = 90
SLOWEST_S = 5
"""From then on the server refuses bodies that arrive at less than 1000 bytes per second."""
BURST = 200
"""Concurrent requests; the server allows 64."""
INVALID: list[Request] = [
    ("/v1/classify?model=nothing", {"content": b"x", "headers": IMAGE}, {404}),
    ("/v2/models/nothing/infer", {"json": {"inputs": []}}, {404}),
    ("/v1/classify", {"content": bytes(33 * 2**20), "headers": IMAGE}, {413}),
    ("/v1/classify", {"content": b"x", "headers": {"Content-Type": "text/plain"}}, {415}),
    ("/v1/classify?top_k=no", {"content": b"x", "headers": IMAGE}, {422}),
]


class Hostile:
    """Clients that send the tests' hostile files and requests to a server with default limits."""

    def __init__(self, clients: Clients) -> None:
        self.clients = clients
        name = next(iter(clients.models.members))
        infer = f"/v2/models/{name}/infer"
        classify = f"/v1/classify?model={name}"
        # The default limits accept some images that the tests' lower limits refuse.
        images: list[tuple[bytes, set[int]]] = [
            (make(), {200, 400}) for make in (*REFUSED.values(), *SHOWN.values())
        ]
        images += [(file[: len(file) // 2], {400}) for file in clients.images]
        refused = {400, 413, 415, 422}
        self.requests: dict[str, list[Request]] = {
            "hostile image": [(classify, _typed(file, "image/png"), ends) for file, ends in images],
            "hostile JSON": [
                (path, _typed(body, "application/json"), refused | ({200} if path == classify else set()))
                for body in JSON.values()
                for path in (classify, infer)
            ],
            "hostile multipart": [
                (classify, _typed(body, kind), ends) for kind, body, ends in MULTIPART.values()
            ],
            "hostile tensor": [(infer, _tensor(*one), refused) for one in TENSORS.values()],
            "mistaken": INVALID,
        }

    def attack(self) -> Action:
        """Return a hostile request, which must be refused, or answered if it is harmless."""
        kind = random.choice(list(self.requests))
        return kind, self.clients.send(*random.choice(self.requests[kind]))

    def rude(self) -> Action:
        """Return an action that needs its own connection."""
        return random.choice(
            (
                lambda: ("broken HTTP", self.broken(*random.choice(list(HTTP.values())))),
                lambda: ("slow upload", self.upload(pieces=20)),
                lambda: ("stalled upload", self.stall()),
                lambda: ("slow reader", self.read_slowly()),
                lambda: ("disconnect", self.leave()),
            )
        )()

    async def burst(self) -> None:
        """Send more concurrent requests than the server allows."""
        self.clients.burst_ended = math.inf
        ones = (self.clients.attempt("burst", self.upload(1)) for _ in range(BURST))
        await asyncio.gather(*ones)
        self.clients.burst_ended = time.monotonic()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection."""
        return await asyncio.open_connection("127.0.0.1", self.clients.port, limit=4096)

    async def broken(self, sent: bytes, expected: list[list[int]]) -> str:
        """Send invalid HTTP."""
        began = time.monotonic()
        reader, writer = await self.connect()
        answers = b""
        try:
            writer.write(sent)
            while piece := await asyncio.wait_for(reader.read(65536), PATIENCE_S):
                answers += piece
        # A reset may follow a response to a request that was not read to its end, and lose it.
        except ConnectionError:
            if len(sent) <= 100_000:
                raise
        finally:
            writer.close()
        found = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers) if status != b"100"]
        if any(self.clients.overloaded(status, began) for status in found):
            return "overloaded"
        if found not in expected and not (len(sent) > 100_000 and not found):
            raise UnexpectedError(f"{sent[:80]!r} was answered {answers[:300]!r}")
        return "refused"

    def raw_request(self) -> tuple[str, int, bytes]:
        """Return a valid request: the ensemble, the image's index, and the bytes."""
        name = random.choice(list(self.clients.models.members))
        index, image = random.choice(list(enumerate(self.clients.images)))
        head = (
            f"POST /v1/classify?model={name}&top_k=10 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Content-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n"
        )
        return name, index, head.encode() + image

    async def upload(self, pieces: int) -> str:
        """Send a valid request in pieces, with pauses in between."""
        name, index, request = self.raw_request()
        began = time.monotonic()
        before = self.clients.models.allowed[name]
        reader, writer = await self.connect()
        try:
            for start in range(0, len(request), size := -(-len(request) // pieces)):
                writer.write(request[start : start + size])
                await asyncio.sleep(random.uniform(0, 0.2) if pieces > 1 else 0)
            response = _parsed(await asyncio.wait_for(reader.read(-1), PATIENCE_S))
        finally:
            writer.close()
        if self.clients.overloaded(response.status_code, began):
            return "overloaded"
        # On a busy machine the pieces may arrive more slowly than the server accepts.
        if response.status_code == 408 and pieces > 1 and time.monotonic() - began > SLOWEST_S:
            return "refused"
        self.clients.check("v1 file", response, [index], (*before, *self.clients.models.allowed[name]))
        return "ok"

    async def stall(self) -> str:
        """Send half of a request, and wait until it is refused."""
        _, _, request = self.raw_request()
        began = time.monotonic()
        reader, writer = await self.connect()
        try:
            writer.write(request[: len(request) // 2])
            response = _parsed(await asyncio.wait_for(reader.read(-1), PATIENCE_S))
        finally:
            writer.close()
        if self.clients.overloaded(response.status_code, began):
            return "overloaded"
        if response.status_code != 408:
            raise UnexpectedError(f"{response.status_code} {response.text}")
        return "refused"

    async def read_slowly(self, count: int = 50) -> str:
        """Request many pages, and read them slowly."""
        reader, writer = await self.connect()
        last = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        writer.write(last.replace(b"Connection: close\r\n", b"") * (count - 1) + last)
        answer = bytearray()
        try:
            while piece := await asyncio.wait_for(reader.read(16384), PATIENCE_S):
                answer += piece
                await asyncio.sleep(0.02)
        finally:
            writer.close()
        if (given := answer.count(b"HTTP/1.1 200 OK")) != count:
            raise UnexpectedError(f"{given} of {count} responses arrived")
        return "ok"

    async def leave(self) -> str:
        """Close the connection at some point of a request or its response, with or without a reset."""
        _, _, request = self.raw_request()
        reader, writer = await self.connect()
        if random.random() < 0.5:
            writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        cut = random.choice((random.randrange(len(request)), len(request), None))
        writer.write(random.choice(list(STAGES.values())) if cut is None else request[:cut])
        await asyncio.sleep(random.uniform(0, 0.05))
        if cut == len(request) and random.random() < 0.5:
            await asyncio.wait_for(reader.read(50), PATIENCE_S)
        writer.transport.abort()
        return "left"


def _typed(body: bytes, kind: str) -> dict[str, Any]:
    return {"content": body, "headers": {"Content-Type": kind}}


def _tensor(body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    if "length" in headers:
        length = str(body.index(b"}]}") + 3) if headers["length"] == "json" else headers["length"]
        headers = {"Inference-Header-Content-Length": length}
    return {"content": body, "headers": headers}


def _parsed(answer: bytes) -> httpx.Response:
    head, _, body = answer.partition(b"\r\n\r\n")
    return httpx.Response(int(head.split()[1]), content=body)
