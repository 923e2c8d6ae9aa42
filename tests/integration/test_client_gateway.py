import asyncio
import io
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image as Picture

from coserve_client import (
    AsyncClient,
    Client,
    Image,
    OverloadedError,
    RejectedError,
    UnknownModelError,
)
from tests.integration.conftest import Serve
from tests.server.onnx_repository import LABELS, write_repository

COSERVE = Path(sys.executable).with_name("coserve")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the address of a real `coserve serve` with one ensemble of two members."""
    folder = tmp_path_factory.mktemp("gateway")
    command = [COSERVE, "serve", "--repository", write_repository(folder / "repository"), "--port", "0"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
    # A server that never announces itself must not hang the tests.
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    assert process.stdout
    announced = process.stdout.readline()
    watchdog.cancel()
    assert announced.startswith("Coserve at http://"), (folder / "log").read_text()
    yield announced.split()[2]
    process.terminate()
    process.communicate(timeout=30)


def picture(colour: str, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Picture.new("RGB", (20, 12), colour).save(file, kind)
    return file.getvalue()


def test_classifies_with_the_real_gateway(url: str, tmp_path: Path) -> None:
    (tmp_path / "red.jpg").write_bytes(picture("red", "JPEG"))
    images = [tmp_path / "red.jpg", picture("blue"), Image(picture("lime"), "ü.png")]

    with Client(url) as client:
        assert client.live()
        assert client.ready()
        reply = client.classify(images, top_k=3, member_predictions=True)
        alone = [client.classify(image, top_k=3).results[0] for image in images]
        (model,) = client.models()
        assert client.model(model.name) == model

    assert (reply.model, reply.degraded, reply.missing) == (model.name, False, ())
    assert tuple(member.name for member in reply.members) == model.members
    assert model.labels == tuple(LABELS)
    assert [result.filename for result in reply.results] == ["red.jpg", "image_1", "ü.png"]
    assert [len(result.predictions) for result in reply.results] == [3, 3, 3]
    for together, single in zip(reply.results, alone, strict=True):
        assert set(together.member_predictions or {}) == set(model.members)
        assert [p.label for p in together.predictions] == [p.label for p in single.predictions]
        assert together.predictions[0].logit == pytest.approx(single.predictions[0].logit, abs=1e-4)


def test_classifies_concurrently(url: str) -> None:
    async def ask() -> list[str]:
        async with AsyncClient(url) as client:
            assert await client.ready()
            replies = await asyncio.gather(*(client.classify(picture("red"), top_k=1) for _ in range(40)))
        return [reply.results[0].predictions[0].label for reply in replies]

    assert len(set(asyncio.run(ask()))) == 1


def test_reports_the_gateway_s_problems(url: str) -> None:
    with Client(url) as client:
        with pytest.raises(RejectedError, match=r"broken\.png") as bad:
            client.classify([picture("red"), Image(b"no image", "broken.png")])
        with pytest.raises(UnknownModelError, match="none"):
            client.classify(picture("red"), model="none")
        with pytest.raises(RejectedError) as large:
            client.classify([picture("red")] * 65)
    assert (bad.value.type, bad.value.status) == ("/problems/bad-image", 400)
    assert (large.value.type, large.value.status) == ("/problems/too-many-images", 413)


def test_an_overloaded_gateway_is_heard_during_an_upload(serve: Serve, tmp_path: Path) -> None:
    server = serve(write_repository(tmp_path), max_connections=1)
    address = httpx.URL(server.url)

    async def ask() -> None:
        async with AsyncClient(server.url, retries=0) as client:
            await client.classify(bytes(3_000_000))

    with socket.create_connection((address.host, address.port)) as connection:
        # An unfinished request, so that the connection is not idle.
        connection.sendall(b"GET")
        with pytest.raises(OverloadedError), Client(server.url, retries=0) as client:
            client.classify(bytes(3_000_000))
        for _ in range(5):
            with pytest.raises(OverloadedError):
                asyncio.run(ask())


def test_the_command_classifies_a_folder(url: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture("red"))
    (tmp_path / "b.png").write_bytes(b"no image")
    command = [COSERVE, "classify", tmp_path, "--url", url, "--json", "--top-k", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert done.returncode == 1
    (line,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert line["file"] == str(tmp_path / "a.png")
    assert line["predictions"][0]["label"] in LABELS
    assert done.stderr.startswith(f"error: {tmp_path}/b.png: ")
    assert done.stderr.count("\n") == 1
