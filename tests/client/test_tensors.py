import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from coserve_client import AsyncClient, InputError, ProtocolError

Ask = Callable[..., Any]
LOGITS = np.array([[1, 2, 3], [4, 5, 6]], np.float32)


def answer(
    tensor: bytes = LOGITS.tobytes(),
    length: str | None = None,
    stopping: dict[str, Any] | None = None,
    **changes: Any,
) -> httpx.Response:
    output = {"name": "logits", "datatype": "FP32", "shape": [2, 3], "parameters": {"binary_data_size": 24}}
    parameters = {"degraded": True, "members": "m0,m1", "missing": "m2: late", "overlap": 1.5}
    document = {
        "model_name": "E",
        "model_version": "1",
        "parameters": parameters | (stopping or {}),
        "outputs": [output | changes],
    }
    head = json.dumps(document).encode()
    return httpx.Response(
        200,
        content=head + tensor,
        headers={"Inference-Header-Content-Length": str(len(head)) if length is None else length},
    )


def test_images_are_not_converted_in_the_event_loop() -> None:
    threads: list[threading.Thread] = []

    class Images:
        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            threads.append(threading.current_thread())
            return np.zeros((2, 3))

    async def run() -> None:
        async with AsyncClient(transport=httpx.MockTransport(lambda _: answer())) as client:
            await client.infer("E", Images())

    asyncio.run(run())
    assert threads
    assert threading.main_thread() not in threads


def test_tensors_are_bytes_both_ways(ask: Ask) -> None:
    images = np.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)[:, ::-1]

    def server(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v2/models/a b/versions/3/infer"
        assert request.headers["Request-Timeout-Ms"] == "50"
        length = int(request.headers["Inference-Header-Content-Length"])
        document = json.loads(request.content[:length])
        assert document["parameters"] == {"binary_data_output": True}
        (tensor,) = document["inputs"]
        assert (tensor["name"], tensor["shape"], tensor["datatype"]) == ("pixels", [2, 3, 4, 4], "FP32")
        sent = np.frombuffer(request.content, np.float32, offset=length).reshape(images.shape)
        np.testing.assert_array_equal(sent, images)
        return answer()

    reply = ask(server, "infer", "a b", images, version="3", timeout_ms=50, input_name="pixels")
    np.testing.assert_array_equal(reply.logits, LOGITS)
    assert reply.logits.dtype == np.float32
    assert (reply.model, reply.version, reply.degraded, reply.overlap) == ("E", "1", True, 1.5)
    assert (reply.members, reply.missing) == (("m0", "m1"), "m2: late")
    assert (reply.image_members, reply.early_stop_confidence, reply.measured_top1) == (None, None, None)


def test_early_stopping_is_requested_and_reported(ask: Ask) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        length = int(request.headers["Inference-Header-Content-Length"])
        assert json.loads(request.content[:length])["parameters"]["early_stop"] == "loaded"
        return answer(
            stopping={"image_members": "m0;m0,m1", "early_stop_confidence": 0.8, "measured_top1": 0.9}
        )

    reply = ask(server, "infer", "E", np.zeros((2, 3, 4, 4)), early_stop="loaded")
    assert reply.image_members == (("m0",), ("m0", "m1"))
    assert (reply.early_stop_confidence, reply.measured_top1) == (0.8, 0.9)


def nested() -> httpx.Response:
    body = b"[" * 100_000
    return httpx.Response(200, content=body, headers={"Inference-Header-Content-Length": str(len(body))})


@pytest.mark.parametrize(
    ("respond", "message"),
    [
        (lambda: answer(length="9999"), "no valid Inference-Header-Content-Length"),
        (lambda: answer(length="x"), "no valid Inference-Header-Content-Length"),
        (lambda: answer(length="9" * 5000), "no valid Inference-Header-Content-Length"),
        (nested, "is not valid JSON: it is nested too deeply"),
        (lambda: answer(shape=[6]), r"logits must be \[N, C\], not \[6\]"),
        (lambda: answer(shape=[3, 2]), "logits of 3 images for 2"),
        (lambda: answer(stopping={"missing": ["m2"]}), r"reply\.parameters\.missing .* is list"),
        (lambda: answer(length="3"), "is not valid JSON"),
        (lambda: answer(tensor=b"1234"), "announces 24 tensor bytes but has 4"),
        (lambda: answer(shape=[3, 3]), "not have the announced shape"),
        (lambda: answer(shape=[-2, -3]), "not have the announced shape"),
        (lambda: answer(datatype="BYTES"), "exactly one output"),
        (lambda: answer(parameters={}), r"lacks reply\.outputs\[0\]\.parameters\.binary_data_size"),
        (lambda: httpx.Response(200, json={}), "no valid Inference-Header-Content-Length"),
    ],
)
def test_reports_invalid_responses(ask: Ask, respond: Callable[[], httpx.Response], message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        ask(lambda _: respond(), "infer", "E", np.zeros((2, 3, 4, 4)))


@pytest.mark.parametrize("images", ["text", "1.5", ["1"], [1j], [[1], [2, 3]], [{}]])
def test_requires_real_numbers(ask: Ask, images: object) -> None:
    with pytest.raises(InputError, match="not an array of real numbers"):
        ask(lambda _: answer(), "infer", "E", images)


@pytest.mark.parametrize("name", ["input_name", "early_stop"])
def test_requires_strings_where_the_request_has_them(ask: Ask, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be a string, not object"):
        ask(lambda _: answer(), "infer", "E", LOGITS, **{name: object()})


def test_only_tensors_need_numpy() -> None:
    script = (
        "import sys; sys.modules['numpy'] = None\n"
        "from coserve_client import Client, InputError\n"
        "try:\n    Client().infer('E', [])\nexcept InputError as error:\n    print(error)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout == "tensors need NumPy: pip install numpy\n"
