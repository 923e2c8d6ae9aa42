"""The client and `coserve classify` against a server that requires HTTPS and keys."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import trustme

from coserve_client import (
    AsyncClient,
    Client,
    DeadlineError,
    RejectedError,
    UnauthenticatedError,
    UnknownModelError,
    UnreachableError,
)
from tests.integration.conftest import COSERVE, Serve, Server
from tests.integration.gateway import LIME, RED, encoded, member_logits
from tests.server.onnx_repository import write_repository


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secure")
    write_repository(folder / "models", "pair")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    return folder


@pytest.fixture(scope="module")
def key(folder: Path) -> str:
    command = [COSERVE, "keys", "create", "lab", "--file", folder / "keys"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.fixture(scope="module")
def server(serve: Serve, folder: Path, key: str) -> Server:
    certificate = str(folder / "server.pem")
    return serve(
        folder / "models",
        *(
            "--api-keys-file",
            str(folder / "keys"),
            "--tls-certificate",
            certificate,
            "--tls-key",
            certificate,
        ),
    )


@pytest.fixture(scope="module")
def client(server: Server, folder: Path, key: str) -> Iterator[Client]:
    with Client(server.url, api_key=key, verify=folder / "ca.pem") as client:
        yield client


def test_keys_and_certificates_are_checked(server: Server, folder: Path, key: str) -> None:
    with Client(server.url, verify=folder / "ca.pem") as stranger:
        with pytest.raises(UnauthenticatedError):
            stranger.classify(RED)
        assert stranger.ready()
        with pytest.raises(UnauthenticatedError):
            stranger.ready("pair")
    trusts_nobody = pytest.raises(UnreachableError, match=r"is not trusted .* verify in Python, --cacert")
    with Client(server.url, api_key=key) as careful, trusts_nobody:
        careful.classify(RED)


def test_a_client_presents_its_certificate_on_request(serve: Serve, folder: Path) -> None:
    own = str(folder / "server.pem")
    server = serve(
        folder / "models",
        *("--tls-certificate", own, "--tls-key", own),
        tls_client_authorities=folder / "ca.pem",
    )
    (folder / "red.png").write_bytes(RED)
    asks = [COSERVE, "classify", folder / "red.png", "--url", server.url, "--cacert", folder / "ca.pem"]
    for shown in (["--cert", own], ["--cert", own, "--key", own]):
        done = subprocess.run([*asks, *shown], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
    done = subprocess.run(asks, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "require a client certificate" in done.stderr
    done = subprocess.run([*asks, "--cert", folder / "ca.pem"], capture_output=True, text=True, timeout=60)
    assert f"cannot load a PEM certificate and its key from {folder / 'ca.pem'}" in done.stderr


def test_tensors_give_the_logits_of_the_members(
    client: Client, server: Server, folder: Path, key: str
) -> None:
    (tensor,) = client.metadata("pair").inputs
    assert (tensor.name, tensor.datatype, tensor.shape) == ("images", "FP32", (-1, 3, 8, 8))
    (model,) = client.models()
    how = model.preprocessing
    colour = (np.array([1, 0, 0]) - how["mean"]) / how["std"]
    images = np.broadcast_to(colour[:, None, None], (2, 3, 8, 8))
    reply = client.infer("pair", images)

    expected = member_logits(folder / "models", "pair", tuple(colour)).mean(0)
    np.testing.assert_allclose(reply.logits, np.stack([expected] * 2), rtol=1e-4, atol=1e-4)
    assert (reply.members, reply.degraded, reply.missing) == (model.members, False, None)
    probable = client.classify(RED, top_k=1).results[0].predictions[0]
    assert probable.class_id == reply.logits[0].argmax()

    async def ask() -> np.ndarray:
        async with AsyncClient(server.url, api_key=key, verify=folder / "ca.pem") as other:
            assert await other.ready("pair")
            return (await other.infer("pair", images, version=model.version)).logits

    np.testing.assert_array_equal(asyncio.run(ask()), reply.logits)


def test_problems_have_their_errors(client: Client) -> None:
    with pytest.raises(RejectedError, match="has shape"):
        client.infer("pair", np.zeros((1, 3, 9, 9)))
    with pytest.raises(RejectedError, match="'pixels'"):
        client.infer("pair", np.zeros((1, 3, 8, 8)), input_name="pixels")
    with pytest.raises(UnknownModelError, match="version"):
        client.infer("pair", np.zeros((1, 3, 8, 8)), version="7")
    with pytest.raises(UnknownModelError):
        client.classify(RED, version="7")
    with pytest.raises(DeadlineError):
        client.classify([RED] * 64, timeout_ms=0.001)
    assert client.ready()
    assert client.ready("pair", version="1")
    assert not client.ready("pair", version="7")
    assert not client.ready("none")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    for index in range(30):
        colour, kind = ("red", "PNG") if index % 2 else ("lime", "JPEG")
        where = tmp_path / "deep" if index % 3 else tmp_path
        (where / f"{index:02}.{kind.lower()}").write_bytes(encoded(colour, kind))
    (tmp_path / "bad.png").write_bytes(b"no image")
    return tmp_path


def test_folders_are_classified_in_order(client: Client, server: Server, photos: Path, key: str) -> None:
    labels = {name: client.classify(data, top_k=1).results[0].predictions[0].label for name, data in
              (("png", RED), ("jpeg", LIME))}  # fmt: skip
    outcomes = list(client.classify_folder(photos, batch_size=4, concurrency=3, top_k=1))
    assert [outcome.source for outcome in outcomes] == sorted(p for p in photos.rglob("*.*"))
    for outcome in outcomes:
        path = Path(str(outcome.source))
        if path.name == "bad.png":
            assert isinstance(outcome.error, RejectedError)
        else:
            assert outcome.result is not None
            assert outcome.result.predictions[0].label == labels[path.suffix[1:]]


def test_the_command_line_takes_key_and_certificate(
    server: Server, folder: Path, photos: Path, key: str
) -> None:
    command = [COSERVE, "classify", photos, "--url", server.url, "--cacert", folder / "ca.pem", "--json"]
    ended = subprocess.run(
        [
            *command,
            "--batch-size",
            "4",
            "--concurrency",
            "3",
            "--model-version",
            "1",
            "--timeout-ms",
            "20000",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"COSERVE_API_KEY": key},
        timeout=120,
    )
    assert ended.returncode == 1
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [line["file"] for line in lines] == [
        str(path) for path in sorted(photos.rglob("*.*")) if path.name != "bad.png"
    ]
    assert ended.stderr.startswith(f"error: {photos}/bad.png: ")

    refused = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "API key" in refused.stderr
