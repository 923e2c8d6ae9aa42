"""`coserve triton`: a real Triton server with the stand-in for its native ONNX Runtime backend."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tritonclient.grpc as grpc
from onnx import TensorProto, helper
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from tests.integration.conftest import StartTriton, Triton
from tests.server.onnx_repository import FAILS, read_config, write_config, write_repository

OUTPUTS = ["zeta", "alpha", "mid", "beta", "omega", "gamma"]
IMAGES = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_repository(tmp_path_factory.mktemp("triton") / "repository")
    member = read_config(folder / "pair_member0")
    member.instance_group.add(count=2, kind="KIND_CPU")
    member.parameters["intra_op_thread_count"].string_value = "2"
    member.dynamic_batching.max_queue_delay_microseconds = 200_000
    write_config(folder / "pair_member0", member)
    write_identity(folder / "numbers", "INT32", TensorProto.INT32, OUTPUTS)
    write_identity(folder / "flags", "BOOL", TensorProto.BOOL, ["y"])
    write_identity(folder / "text", "STRING", TensorProto.STRING, ["y"])
    return write_repository(folder, "broken", faults={1: FAILS})


def write_identity(folder: Path, kind: str, element: int, outputs: list[str]) -> None:
    """Write a model that gives its input again, under several names."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], [output]) for output in sorted(outputs)],
        "g",
        [value("x", element, ["n", 2])],
        [value(output, element, ["n", 2]) for output in sorted(outputs)],
    )
    config = model_config_pb2.ModelConfig(name=folder.name, backend="onnxruntime", max_batch_size=4)
    config.instance_group.add(count=1)
    data_type = f"TYPE_{kind}"
    config.input.add(name="x", data_type=data_type, dims=[2])
    for output in outputs:
        config.output.add(name=output, data_type=data_type, dims=[2])
    (folder / "1").mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        folder / "1/model.onnx",
    )
    write_config(folder, config)


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
    ready = [model for model in server.models if model["name"] != "text"]
    assert [model["name"] for model in ready] == sorted([*names, "flags", "numbers"])
    assert all(model["ready"] and model["version"] == "1" for model in ready)


def test_text_is_refused_when_the_model_loads(server: Triton) -> None:
    (text,) = (model for model in server.models if model["name"] == "text")
    assert not text["ready"]
    assert text["reason"].endswith(
        "text: x is BYTES, which needs Triton's native ONNX Runtime backend: use NVIDIA's container for this "
        "model"
    )
    assert "\n" not in text["reason"]


@pytest.mark.parametrize("requested", [OUTPUTS, ["mid", "zeta", "gamma"], []])
def test_outputs_come_in_the_order_of_the_configuration(server: Triton, requested: list[str]) -> None:
    """Triton's own examples read them by position."""
    values = np.array([[1, -2], [3, 2**31 - 1]], np.int32)
    tensor = grpc.InferInput("x", [2, 2], "INT32")
    tensor.set_data_from_numpy(values)
    outputs = [grpc.InferRequestedOutput(name) for name in requested] or None
    with grpc.InferenceServerClient(server.grpc) as client:
        result = client.infer("numbers", [tensor], outputs=outputs, client_timeout=60)
    names = [output.name for output in result.get_response().outputs]
    assert names == [name for name in OUTPUTS if name in (requested or OUTPUTS)]
    for name in names:
        np.testing.assert_array_equal(result.as_numpy(name), values)


def test_flags(server: Triton) -> None:
    values = np.array([[True, False], [False, True]])
    tensor = grpc.InferInput("x", [2, 2], "BOOL")
    tensor.set_data_from_numpy(values)
    with grpc.InferenceServerClient(server.grpc) as client:
        np.testing.assert_array_equal(client.infer("flags", [tensor]).as_numpy("y"), values)


def test_no_response_cache_and_the_given_instances(server: Triton) -> None:
    with grpc.InferenceServerClient(server.grpc) as client:
        config = client.get_model_config("pair_member0").config
    assert not config.response_cache.enable
    assert [(group.count, group.kind) for group in config.instance_group] == [
        (2, ModelInstanceGroup.KIND_CPU)
    ]
