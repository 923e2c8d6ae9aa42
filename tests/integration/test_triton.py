"""`coserve triton`: a real Triton server with the stand-in for its native ONNX Runtime backend."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc as grpc
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from tests.integration.conftest import StartTriton, Triton
from tests.server.onnx_repository import FAILS, read_config, write_config, write_repository

IMAGES = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_repository(tmp_path_factory.mktemp("triton") / "repository")
    member = read_config(folder / "pair_member0")
    member.instance_group.add(count=2, kind="KIND_CPU")
    member.parameters["intra_op_thread_count"].string_value = "2"
    member.dynamic_batching.max_queue_delay_microseconds = 200_000
    write_config(folder / "pair_member0", member)
    return write_repository(folder, "broken", faults={1: FAILS})


@pytest.fixture(scope="module")
def server(triton: StartTriton, repository: Path) -> Triton:
    return triton(repository)


def member_logits(repository: Path, name: str, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(repository / name / "1/model.onnx", providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


def request(images: np.ndarray) -> list[grpc.InferInput]:
    tensor = grpc.InferInput("images", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images)
    return [tensor]


def infer(server: Triton, model: str, images: np.ndarray) -> np.ndarray:
    with grpc.InferenceServerClient(server.grpc) as client:
        return client.infer(model, request(images), client_timeout=60).as_numpy("logits")


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("name", ["pair_member0", "pair_member1"])
def test_a_member_gives_the_logits_of_onnx_runtime(
    server: Triton, repository: Path, name: str, batch: int
) -> None:
    expected = member_logits(repository, name, IMAGES[:batch])
    assert np.ptp(expected) > 0.1, "equal elements would hide a wrong stride"
    np.testing.assert_allclose(infer(server, name, IMAGES[:batch]), expected, rtol=1e-5, atol=1e-5)


def test_the_ensemble_averages_its_members(server: Triton, repository: Path) -> None:
    expected = np.mean([member_logits(repository, f"pair_member{i}", IMAGES) for i in range(2)], axis=0)
    np.testing.assert_allclose(infer(server, "pair", IMAGES), expected, rtol=1e-5, atol=1e-5)


def test_requests_are_batched_and_each_gets_its_own_answer(server: Triton, repository: Path) -> None:
    with grpc.InferenceServerClient(server.grpc) as client:
        before = client.get_inference_statistics("pair_member0").model_stats[0]
        with ThreadPoolExecutor(len(IMAGES)) as threads:
            answers = list(threads.map(lambda image: infer(server, "pair_member0", image[None]), IMAGES))
        after = client.get_inference_statistics("pair_member0").model_stats[0]
    expected = member_logits(repository, "pair_member0", IMAGES)
    np.testing.assert_allclose(np.concatenate(answers), expected, rtol=1e-5, atol=1e-5)
    assert after.inference_count - before.inference_count == len(IMAGES)
    assert after.execution_count - before.execution_count < len(IMAGES)


def test_a_failing_member_says_why_and_goes_on(server: Triton, repository: Path) -> None:
    with pytest.raises(grpc.InferenceServerException, match="indices element out of data bounds"):
        infer(server, "broken_member1", np.ones((1, 3, 8, 8), np.float32))
    black = np.zeros((1, 3, 8, 8), np.float32)
    expected = member_logits(repository, "broken_member1", black)
    np.testing.assert_allclose(infer(server, "broken_member1", black), expected, atol=1e-5)


def test_every_model_is_ready(server: Triton) -> None:
    names = [
        f"{name}{suffix}" for name in ("broken", "pair") for suffix in ("", "_mean", "_member0", "_member1")
    ]
    assert [model["name"] for model in server.models] == names
    assert all(model["ready"] and model["version"] == "1" for model in server.models)


def test_no_response_cache_and_the_given_instances(server: Triton) -> None:
    with grpc.InferenceServerClient(server.grpc) as client:
        config = client.get_model_config("pair_member0").config
    assert not config.response_cache.enable
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (2, ModelInstanceGroup.KIND_CPU)
    ]
