"""Triton's own HTTP clients against `coserve serve`, unchanged."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from PIL import Image

from coserve_images.decode import decode
from coserve_images.preprocess import preprocess
from coserve_server.ensembles.preprocessing import Preprocessing
from tests.integration.conftest import Serve, Server
from tests.integration.gateway import classify, logits, member_logits
from tests.server.onnx_repository import LABELS, NOT_FINITE, PREPROCESSING, write_repository

COLOURS = np.array([[1, 0, 0], [0, 1, 0], [0.2, 0.4, 0.6]], np.float32)
IMAGES = np.ascontiguousarray(np.broadcast_to(COLOURS[:, :, None, None], (3, 3, 8, 8)))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_repository(folder, "pair", weights=[1.0, 3.0])
    return write_repository(folder, "nan", faults={1: NOT_FINITE})


@pytest.fixture(scope="module")
def server(serve: Serve, repository: Path) -> Server:
    return serve(repository, "--min-members", "1", "--serve-members")


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.url.removeprefix("http://"), concurrency=4) as client:
        yield client


@pytest.fixture(scope="module")
def expected(repository: Path) -> np.ndarray:
    members = [member_logits(repository, "pair", tuple(colour)) for colour in COLOURS.tolist()]
    return np.stack([m[0] / 4 + m[1] * 3 / 4 for m in members])


def tensor(images: np.ndarray, binary: bool = True, module: Any = triton) -> Any:
    input_ = module.InferInput("images", list(images.shape), "FP32")
    input_.set_data_from_numpy(images, binary_data=binary)
    return input_


@pytest.mark.parametrize("binary_output", [True, False, None])
@pytest.mark.parametrize("binary_input", [True, False])
def test_tensors_go_both_ways_in_both_encodings(
    client: triton.InferenceServerClient,
    expected: np.ndarray,
    binary_input: bool,
    binary_output: bool | None,
) -> None:
    outputs = None if binary_output is None else [triton.InferRequestedOutput("logits", binary_output)]
    result = client.infer("pair", [tensor(IMAGES, binary_input)], outputs=outputs, request_id="a 7 é")
    np.testing.assert_allclose(result.as_numpy("logits"), expected, atol=1e-4)
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("a 7 é", "pair", "1")
    assert response["parameters"]["members"] == "pair_member0,pair_member1"
    assert not response["parameters"]["degraded"]
    assert response["parameters"]["overlap"] > 0


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(
    client: triton.InferenceServerClient, expected: np.ndarray, algorithm: str
) -> None:
    result = client.infer(
        "pair",
        [tensor(IMAGES)],
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    np.testing.assert_allclose(result.as_numpy("logits"), expected, atol=1e-4)


@pytest.mark.parametrize("binary", [True, False])
def test_classification(client: triton.InferenceServerClient, expected: np.ndarray, binary: bool) -> None:
    output = triton.InferRequestedOutput("logits", binary, class_count=2)
    answered = client.infer("pair", [tensor(IMAGES)], outputs=[output]).as_numpy("logits")
    assert answered.shape == (3, 2)
    for row, wanted in zip(answered, expected, strict=True):
        texts = [text.decode() if binary else text for text in row]
        for text, index in zip(texts, np.argsort(-wanted), strict=False):
            value, class_id, label = text.split(":")
            assert (int(class_id), label) == (index, LABELS[index])
            assert float(value) == pytest.approx(wanted[index], abs=1e-4)


def test_many_requests_at_once_get_their_own_answers(
    client: triton.InferenceServerClient, expected: np.ndarray
) -> None:
    asked = [client.async_infer("pair", [tensor(IMAGES[[i % 3]], i % 2 == 0)]) for i in range(24)]
    for index, request in enumerate(asked):
        np.testing.assert_allclose(request.get_result().as_numpy("logits")[0], expected[index % 3], atol=1e-4)


def test_more_images_than_a_batch_holds(client: triton.InferenceServerClient, expected: np.ndarray) -> None:
    result = client.infer("pair", [tensor(np.concatenate([IMAGES] * 7))])
    np.testing.assert_allclose(result.as_numpy("logits"), np.concatenate([expected] * 7), atol=1e-4)


def test_the_asynchronous_client(server: Server, expected: np.ndarray) -> None:
    async def go() -> None:
        async with triton_aio.InferenceServerClient(server.url.removeprefix("http://")) as client:
            assert await client.is_server_live()
            assert await client.is_model_ready("pair", "1")
            config = await client.get_model_config("pair")
            assert config["max_batch_size"] == 8
            results = await asyncio.gather(
                *(client.infer("pair", [tensor(IMAGES, binary, triton_aio)]) for binary in (True, False) * 4)
            )
        for result in results:
            np.testing.assert_allclose(result.as_numpy("logits"), expected, atol=1e-4)

    asyncio.run(go())


def test_an_image_and_its_tensor_get_the_same_logits(
    server: Server, client: triton.InferenceServerClient
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (23, 31, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    how = Preprocessing.model_validate(PREPROCESSING)
    image = preprocess(decode(file.getvalue(), 10_000), how, 10_000)
    ours = client.infer("pair", [tensor(image[None])]).as_numpy("logits")[0]
    np.testing.assert_allclose(
        ours, logits(classify(server, file.getvalue(), model="pair").json(), 0), atol=1e-4
    )


def test_a_member_alone(client: triton.InferenceServerClient, repository: Path) -> None:
    wanted = member_logits(repository, "pair", tuple(COLOURS[2].tolist()))
    for index in range(2):
        result = client.infer(f"pair_member{index}", [tensor(IMAGES[2:])], model_version="1")
        np.testing.assert_allclose(result.as_numpy("logits")[0], wanted[index], atol=1e-4)


def test_a_degraded_answer_says_so(client: triton.InferenceServerClient, repository: Path) -> None:
    result = client.infer("nan", [tensor(IMAGES[:1])])
    parameters = result.get_response()["parameters"]
    assert parameters["degraded"]
    assert parameters["members"] == "nan_member0"
    assert parameters["missing"] == "nan_member1: logits are not finite"
    np.testing.assert_allclose(
        result.as_numpy("logits")[0], member_logits(repository, "nan", (1, 0, 0))[0], atol=1e-4
    )


def test_what_clients_ask_about(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("pair")
    assert not client.is_model_ready("cow")
    assert client.get_server_metadata()["name"] == "coserve"
    assert client.get_model_metadata("pair", "1")["inputs"][0]["shape"] == [-1, 3, 8, 8]
    index = client.get_model_repository_index()
    assert [one["name"] for one in index][:2] == ["nan", "pair"]
    assert {one["state"] for one in index} == {"READY"}


def test_statistics(client: triton.InferenceServerClient) -> None:
    def counted() -> dict[str, Any]:
        return dict(client.get_inference_statistics("pair")["model_stats"][0])

    before = counted()
    client.infer("pair", [tensor(IMAGES)])
    after = counted()
    assert after["inference_count"] == before["inference_count"] + 3
    assert after["execution_count"] == before["execution_count"] + 1
    for part in ("success", "queue", "compute_input", "compute_infer", "compute_output"):
        assert after["inference_stats"][part]["count"] == before["inference_stats"][part]["count"] + 1
        assert after["inference_stats"][part]["ns"] > before["inference_stats"][part]["ns"]
    everything = client.get_inference_statistics()["model_stats"]
    assert {"pair", "nan", "pair_member0"} <= {one["name"] for one in everything}


def test_errors_reach_the_client_in_words(client: triton.InferenceServerClient) -> None:
    def refused(status: str, message: str, *arguments: Any, **keywords: Any) -> None:
        with pytest.raises(triton.InferenceServerException) as caught:
            client.infer(*arguments, **keywords)
        assert caught.value.status() == status
        assert message in caught.value.message()

    refused("404", "'cow' is not served; choose from nan, pair", "cow", [tensor(IMAGES)])
    refused("404", "no version '9'", "pair", [tensor(IMAGES)], model_version="9")
    refused("400", "takes [N, 3, 8, 8]", "pair", [tensor(IMAGES[:, :, 1:])])
    refused("400", "finite values", "pair", [tensor(IMAGES * np.nan)])
    refused("413", "69 images, more than the 64", "pair", [tensor(np.concatenate([IMAGES] * 23))])
    refused("504", "before the deadline", "pair", [tensor(IMAGES)], timeout=1)
    unknown = [triton.InferRequestedOutput("scores")]
    refused("400", "gives one, 'logits'", "pair", [tensor(IMAGES)], outputs=unknown)
    for call in (client.load_model, client.unload_model):
        with pytest.raises(triton.InferenceServerException, match="not enabled"):
            call("pair")


@pytest.mark.parametrize("binary", [True, False])
def test_what_the_kserve_client_sends(server: Server, expected: np.ndarray, binary: bool) -> None:
    """Requests recorded from kserve 0.21's client, whose pinned dependencies conflict with ours."""
    shape = f'"shape":{list(IMAGES.shape)},"datatype":"FP32"'.replace(" ", "")
    data = ",".join(map(str, IMAGES.ravel().tolist()))
    parameters = f'{{"binary_data_size":{IMAGES.nbytes}}}'
    elements = f'"parameters":{parameters}' if binary else f'"data":[{data}]'
    head = f'{{"id":"7","model_name":"pair","inputs":[{{"name":"images",{shape},{elements}}}]}}'.encode()
    headers = {"content-type": "application/json"}
    if binary:
        headers = {
            "inference-header-content-length": str(len(head)),
            "content-type": "application/octet-stream",
        }
    with server.http() as http:
        assert http.get("/v2/health/live").json()["live"]
        assert http.get("/v2/health/ready").json()["ready"]
        assert http.get("/v2/models/pair/ready").is_success
        body = head + IMAGES.tobytes() if binary else head
        reply = http.post("/v2/models/pair/infer", content=body, headers=headers).json()
    assert reply["id"] == "7"
    (output,) = reply["outputs"]
    np.testing.assert_allclose(np.reshape(output["data"], output["shape"]), expected, atol=1e-4)
