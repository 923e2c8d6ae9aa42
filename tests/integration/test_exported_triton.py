"""Exported repositories, loaded by a real Triton server."""

import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as grpc
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from coserve_export.deployment import DEFAULT_DEPLOYMENT, Deployment, Placement
from coserve_export.ensemble import Description, Member, Preprocessing
from coserve_export.repository import write_ensemble
from coserve_export.versions import write_version
from coserve_server.ensembles.repository import read_repository, read_versions
from tests.integration.conftest import StartTriton, Triton
from tests.integration.load import until
from tests.server.onnx_repository import LABELS, network

IMAGES = np.random.default_rng(0).normal(size=(3, 3, 8, 8)).astype(np.float32)
PREPROCESSING = Preprocessing(8, 8, 8, "bilinear", [0.0] * 3, [1.0] * 3)


def describe(deployment: Deployment = DEFAULT_DEPLOYMENT, weights: list[float] | None = None) -> Description:
    return Description("e", 2, LABELS, PREPROCESSING, 8, weights, deployment)


def members(seed: int) -> list[Member]:
    return [Member(network(seed + index, 8, 8, 1).SerializeToString()) for index in range(2)]


def logits(networks: list[Member], shares: list[float]) -> np.ndarray:
    sessions = [ort.InferenceSession(m.model, providers=["CPUExecutionProvider"]) for m in networks]
    runs = [session.run(["logits"], {"images": IMAGES})[0] for session in sessions]
    return np.average(runs, axis=0, weights=shares)


def infer(client: grpc.InferenceServerClient) -> np.ndarray:
    tensor = grpc.InferInput("images", list(IMAGES.shape), "FP32")
    tensor.set_data_from_numpy(IMAGES)
    return client.infer("e", [tensor], client_timeout=60).as_numpy("logits")


def executions(client: grpc.InferenceServerClient) -> dict[str, int]:
    return {model.name: model.execution_count for model in client.get_inference_statistics().model_stats}


CPU = Deployment(
    Placement(cpu=True),
    instances=2,
    threads=2,
    preferred_batch_sizes=(2, 4),
    queue_delay_us=1000,
    parameters={"enable_mem_arena": "0", "enable_mem_pattern": "0"},
)
EIGHT_CORES = Deployment(cores=8, threads=2)
AUTO = Deployment(cuda={"cudnn_conv_algo_search": "HEURISTIC"}, tensorrt={"precision_mode": "FP16"})


@pytest.mark.parametrize("deployment", [CPU, AUTO, EIGHT_CORES], ids=["cpu", "auto", "8 cores"])
def test_every_configuration_loads_and_the_ensemble_averages(
    triton: StartTriton, tmp_path: Path, deployment: Deployment
) -> None:
    """A repository whose placement is automatic loads without GPUs too."""
    networks = members(0)
    write_ensemble(tmp_path / "repository", describe(deployment, [1.0, 3.0]), networks, {})
    sized = deployment.sized(2)
    server = triton(tmp_path / "repository")
    assert [(model["name"], model["version"], model["ready"]) for model in server.models] == [
        (name, "1", True) for name in ("e", "e_mean", "e_member0", "e_member1")
    ]
    with grpc.InferenceServerClient(server.grpc) as client:
        warm = executions(client)
        np.testing.assert_allclose(infer(client), logits(networks, [1, 3]), rtol=1e-5, atol=1e-5)
        # Triton counts after it has answered.
        until(lambda: all(count > warm[name] for name, count in executions(client).items()))
        after = executions(client)
        loaded = client.get_model_config("e_member1").config
    assert warm["e_member0"] == sized.instances * len(loaded.model_warmup)
    assert {name: after[name] - warm[name] for name in after} == dict.fromkeys(after, 1)
    assert [(g.kind, g.count) for g in loaded.instance_group] == [
        (ModelInstanceGroup.KIND_CPU, sized.instances)
    ]
    batching = loaded.dynamic_batching
    # Triton itself adds the largest batch if no size is preferred.
    assert tuple(batching.preferred_batch_size) == (deployment.preferred_batch_sizes or (8,))
    assert batching.max_queue_delay_microseconds == deployment.queue_delay_us
    assert loaded.parameters["intra_op_thread_count"].string_value == str(sized.threads)
    assert not loaded.response_cache.enable
    assert server.stop() == 0


def test_members_placed_on_gpus_need_them(
    triton: StartTriton, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """On a machine without GPUs, Triton reports only that they are missing, and serves the rest."""
    deployment = Deployment(Placement((0, 1)), cuda={"use_tf32": "0"})
    write_ensemble(tmp_path / "repository", describe(deployment), members(0), {})
    triton(tmp_path / "repository")
    failures = re.findall(r"failed to load '(\w+)' version 1: (.*)", capfd.readouterr().err)
    assert {name for name, _ in failures} == {"e_member0", "e_member1"}
    for name, reason in failures:
        assert f"model {name} specifies invalid or unsupported gpu id {name[-1]}" in reason


@contextmanager
def send_requests(server: Triton) -> Iterator[list[np.ndarray]]:
    """Send requests to the ensemble without pause; yield the growing list of responses."""
    answers: list[np.ndarray] = []
    stop = Event()

    def ask() -> None:
        with grpc.InferenceServerClient(server.grpc) as client:
            while not stop.is_set():
                answers.append(infer(client))

    thread = Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        stop.set()
        thread.join()


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def roll_back(repository: Path) -> None:
    """Roll back from version 2 to version 1, as the documentation says."""
    shutil.rmtree(repository / "e/2")
    (repository / "e/1/config.pbtxt").rename(repository / "e/config.pbtxt")


@pytest.mark.parametrize("gone_back", [False, True])
def test_a_running_server_takes_over_a_new_version_of_all_members_at_once(
    triton: StartTriton, tmp_path: Path, gone_back: bool
) -> None:
    repository = tmp_path / "repository"
    old = members(0)
    new = members(10)
    write_ensemble(repository, describe(), old, {})
    if gone_back:
        write_version(repository, describe(), members(20), {})
        roll_back(repository)
    server = triton(repository, "--", "--model-control-mode=poll", "--repository-poll-secs=1")
    before = logits(old, [1, 1])
    after = logits(new, [1, 1])
    with send_requests(server) as answers:
        assert eventually(lambda: len(answers) > 0)
        write_version(repository, describe(), new, {})
        assert eventually(lambda: np.allclose(answers[-1], after, atol=1e-4))
    is_old = [np.allclose(answer, before, atol=1e-4) for answer in answers]
    is_new = [np.allclose(answer, after, atol=1e-4) for answer in answers]
    assert all(a or b for a, b in zip(is_old, is_new, strict=True)), "never a mean of both versions"
    assert is_old[0]
    assert server.stop() == 0


def test_the_embedded_engine_reads_the_new_version(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_ensemble(repository, describe(), members(0), {"network": "old"})
    write_version(repository, describe(), members(10), {"network": "new"})
    ensemble = read_repository(repository)["e"]
    assert ensemble.version == "2"
    paths = [repository / f"e_member{index}/2/model.onnx" for index in range(2)]
    assert [member.model_path for member in ensemble.members] == paths

    config = (repository / "e/config.pbtxt").read_text()
    (repository / "e/config.pbtxt").write_text(config + "version_policy { all {} }")
    versions = read_versions(repository)["e"]
    assert [one.version for one in versions] == ["1", "2"]
    assert [one.provenance for one in versions] == [{"network": "old"}, {"network": "new"}]
    for one in versions:
        paths = [repository / f"e_member{index}/{one.version}/model.onnx" for index in range(2)]
        assert [member.model_path for member in one.members] == paths
