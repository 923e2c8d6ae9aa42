"""The same `/v2` requests to a real Triton, to a gateway in front of it, and to an embedded engine."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton_http

from tests.integration.conftest import COSERVE, Serve, Server, StartTriton, Triton
from tests.integration.perf_analyzer import perf_analyzer
from tests.integration.test_v2_clients import IMAGES, tensor
from tests.server.onnx_repository import limit_instances, write_repository

Client = triton_http.InferenceServerClient


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return limit_instances(write_repository(tmp_path_factory.mktemp("models"), "pair", weights=[1.0, 3.0]))


@pytest.fixture(scope="module")
def server(triton: StartTriton, repository: Path) -> Triton:
    return triton(repository)


@pytest.fixture(scope="module")
def gateway(serve: Serve, server: Triton) -> Server:
    """A gateway in front of Triton."""
    return serve(None, "--triton-url", server.grpc, "--serve-members")


@pytest.fixture(scope="module")
def embedded(serve: Serve, repository: Path) -> Server:
    return serve(repository, "--serve-members")


@pytest.fixture(scope="module")
def clients(server: Triton, gateway: Server, embedded: Server) -> Iterator[list[Client]]:
    addresses = [server.http, *(one.url.removeprefix("http://") for one in (gateway, embedded))]
    clients = [Client(address) for address in addresses]
    yield clients
    for client in clients:
        client.close()


def test_the_logits_are_those_of_triton_s_ensemble(clients: list[Client]) -> None:
    theirs, *ours = (client.infer("pair", [tensor(IMAGES)]).as_numpy("logits") for client in clients)
    for answer in ours:
        np.testing.assert_allclose(answer, theirs, atol=1e-4)
    assert np.abs(theirs[0] - theirs[1]).max() > 1e-2


def test_members_alone_answer_as_in_triton(clients: list[Client]) -> None:
    for name in ("pair_member0", "pair_member1"):
        theirs, *ours = (client.infer(name, [tensor(IMAGES)]).as_numpy("logits") for client in clients)
        for answer in ours:
            np.testing.assert_allclose(answer, theirs, atol=1e-4)


def test_classes_are_ranked_and_written_alike(clients: list[Client]) -> None:
    """The repository's configuration names no label file, so Triton returns no labels."""
    output = triton_http.InferRequestedOutput("logits", class_count=3)
    theirs, *ours = (
        client.infer("pair", [tensor(IMAGES)], outputs=[output]).as_numpy("logits") for client in clients
    )
    for answer in ours:
        assert answer.shape == theirs.shape
        for text, wanted in zip(answer.ravel(), theirs.ravel(), strict=True):
            value, index, _ = text.split(b":")
            wanted_value, wanted_index = wanted.split(b":")
            assert index == wanted_index
            assert float(value) == pytest.approx(float(wanted_value), abs=1e-4)
            assert len(value) - value.index(b".") == len(wanted_value) - wanted_value.index(b".")


def test_models_are_described_alike(clients: list[Client]) -> None:
    def described(client: Client, name: str) -> Any:
        metadata = client.get_model_metadata(name)
        config = client.get_model_config(name)
        # Triton's image clients need the input's format; Triton gives outputs none.
        fields = {"input": ("name", "data_type", "format", "dims"), "output": ("name", "data_type", "dims")}
        tensors = [[one[key] for key in keys] for side, keys in fields.items() for one in config[side]]
        return (
            [metadata[key] for key in ("name", "versions", "inputs", "outputs")],
            tensors,
            config["max_batch_size"],
        )

    for name in ("pair", "pair_member1"):
        theirs, *ours = (described(client, name) for client in clients)
        assert all(answer == theirs for answer in ours)


def test_statistics_have_the_same_fields(clients: list[Client]) -> None:
    counted = []
    for client in clients:
        client.infer("pair_member0", [tensor(IMAGES)])
        (statistics,) = client.get_inference_statistics("pair_member0")["model_stats"]
        counted.append(statistics)
    theirs, *ours = counted
    for answer in ours:
        assert set(answer) <= set(theirs)
        assert set(answer["inference_stats"]) == set(theirs["inference_stats"])
        assert set(answer["batch_stats"][0]) == set(theirs["batch_stats"][0])


def test_the_benchmark_measures_triton_and_what_stands_before_it(server: Triton, gateway: Server) -> None:
    command = [COSERVE, "bench", "perf-analyzer", "--triton", server.grpc, "--model", "pair", "--json"]
    command += ["--gateway", gateway.url.removeprefix("http://"), "--binary", perf_analyzer()]
    done = subprocess.run(
        [*command, "--concurrency", "2", "--requests", "20"], capture_output=True, text=True, timeout=240
    )
    assert (done.returncode, done.stderr) == (0, "")
    (measured,) = (one for one in json.loads(done.stdout)["measurements"] if one["what"] == "gateway")
    assert measured["model"] == "pair"
    assert measured["latencies"]["images_per_s"] > 0
