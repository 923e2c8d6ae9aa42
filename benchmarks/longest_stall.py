"""Measure how long the largest requests within the limits keep another one waiting.

    python benchmarks/longest_stall.py --repository model_repository --model wide_resnet16_4_s2

For each kind of request: the longest time that `/healthz` took while such requests were served one after
another, in the best of several trials, since other processes on the machine can only add to it.
"""

import argparse
import base64
import http.client
import io
import json
import multiprocessing
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
from PIL import Image
from soak.serving import serving
from tritonclient.grpc import service_pb2 as messages

from coserve_images.formats import register_heic

MAX_BODY = 32 * 2**20 - 2**12
MAX_IMAGES = 64
MAX_PREDICTIONS = 100_000
LENGTH = "Inference-Header-Content-Length"
INFER = "/inference.GRPCInferenceService/ModelInfer"


class Sent(NamedTuple):
    """A request: a path over HTTP, or None for gRPC's inference; headers and body."""

    path: str | None
    headers: dict[str, str]
    body: bytes


class Target(NamedTuple):
    """What requests need to know of the model."""

    name: str
    shape: list[int]
    output: str
    classes: int
    members: int
    coverages: list[str]


def png(size: int = 4) -> bytes:
    """Return a small image file."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), "teal").save(file, "PNG")
    return file.getvalue()


def noise(kind: str, max_bytes: int) -> bytes:
    """Return the largest image file of at most that many bytes, of pixels that cannot be compressed."""
    side = int((max_bytes / 3) ** 0.5) - 2
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def flat(kind: str, megapixels: int, mode: str = "RGB") -> bytes:
    """Return an image of one colour, which is a small file."""
    side = int((megapixels * 1e6) ** 0.5)
    file = io.BytesIO()
    options = {"compression": "tiff_adobe_deflate"} if kind == "TIFF" else {}
    Image.new(mode, (side, side)).save(file, kind, **options)
    return file.getvalue()


def multipart(files: list[bytes], query: str = "", boundary: bytes = b"boundary") -> Sent:
    """Return a multipart request to /v1."""
    head = b'\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    parts = b"".join(b"--%b%b%b\r\n" % (boundary, head, file) for file in files)
    kind = {"Content-Type": f"multipart/form-data; boundary={boundary.decode()}"}
    return Sent(f"/v1/classify?{query}", kind, parts + b"--%b--\r\n" % boundary)


def as_json(path: str, document: Any) -> Sent:
    """Return a request whose body is JSON."""
    return Sent(path, {"Content-Type": "application/json"}, json.dumps(document).encode())


def requests(target: Target) -> Iterator[tuple[str, Sent]]:
    """Yield the largest requests of each kind."""
    many = [png()] * MAX_IMAGES
    picture = noise("BMP", MAX_BODY)
    predictions = f"model={target.name}&top_k={target.classes}"
    fitting = min(MAX_IMAGES, MAX_PREDICTIONS // (target.classes * (1 + target.members)))
    yield "image of 31 MB", Sent("/v1/classify", {"Content-Type": "image/bmp"}, picture)
    yield "multipart: one image of 31 MB", multipart([picture])
    yield (
        "multipart: parts that look like boundaries (400)",
        multipart([b"\r\n--bx" * (MAX_BODY // 6)], boundary=b"b"),
    )
    yield "multipart: 64 images, all classes", multipart(many, predictions)
    yield (
        "multipart: all classes of all members",
        multipart(many[:fitting], f"{predictions}&member_predictions=true"),
    )
    for coverage in target.coverages[-1:]:
        sets = MAX_PREDICTIONS // (target.classes + 5)
        yield (
            f"multipart: sets that cover {coverage}",
            multipart(many[:sets], f"model={target.name}&coverage={coverage}"),
        )
    yield from json_requests()
    yield from image_requests()
    yield from infer_requests(target, many)


def json_requests() -> Iterator[tuple[str, Sent]]:
    """Yield the longest texts in JSON, and what else a body can hold between them."""

    def raw(images: bytes) -> Sent:
        return Sent("/v1/classify", {"Content-Type": "application/json"}, b'{"images":[%b]}' % images)

    yield "JSON: base64 of 31 MB", raw(b'"%b"' % base64.b64encode(noise("BMP", MAX_BODY // 4 * 3)))
    escaped = b"".join(b"\\u%04x" % letter for letter in base64.b64encode(noise("BMP", MAX_BODY // 8)))
    yield "JSON: base64 in escapes", raw(b'"%b"' % escaped)
    yield "JSON: base64 without an end (400)", raw(b'"' + b"A" * MAX_BODY)
    yield "JSON: spaces (413)", raw(b" " * MAX_BODY)
    yield "JSON: one number (413)", raw(b"1" * MAX_BODY)


def image_requests() -> Iterator[tuple[str, Sent]]:
    """Yield image files that take long to decode."""
    kinds = [(kind, "RGB") for kind in ("JPEG", "PNG", "TIFF", "WEBP", "AVIF", "HEIF")]
    for kind, mode in [*kinds, ("PNG", "RGBA"), ("GIF", "P")]:
        for megapixels in (12, 49):
            name = f"{kind} of {megapixels} megapixels{', transparent' * (mode == 'RGBA')}"
            yield name, Sent("/v1/classify", {"Content-Type": f"image/{kind}"}, flat(kind, megapixels, mode))
    yield "PNG of 31 MB", Sent("/v1/classify", {"Content-Type": "image/png"}, noise("PNG", MAX_BODY))
    behind = flat("JPEG", 1).ljust(MAX_BODY, b"\xff")
    yield "JPEG with 31 MB behind it", Sent("/v1/classify", {"Content-Type": "image/jpeg"}, behind)


def infer_requests(target: Target, many: list[bytes]) -> Iterator[tuple[str, Sent]]:
    """Yield the largest requests of the Open Inference Protocol, over HTTP and gRPC."""
    path = f"/v2/models/{target.name}/infer"
    size = int(np.prod(target.shape))
    count = min(MAX_IMAGES, MAX_BODY // (4 * size))
    values = np.random.default_rng(0).normal(size=(count, *target.shape)).astype(np.float32)
    classified = [{"name": target.output, "parameters": {"classification": target.classes}}]
    tensor = {"name": "images", "datatype": "FP32", "shape": list(values.shape)}
    written = min(count, MAX_BODY // (10 * size))
    some = [round(float(value), 5) for value in values[:written].ravel()]
    flat = tensor | {"shape": [written, *target.shape], "data": some}
    yield "/v2, JSON: a flat tensor", as_json(path, {"inputs": [flat]})
    nested = flat | {"data": np.array(some).reshape(written, *target.shape).tolist()}
    yield "/v2, JSON: a nested tensor", as_json(path, {"inputs": [nested]})
    for name, outputs in (("logits", []), ("all classes", classified)):
        binary = {**tensor, "parameters": {"binary_data_size": values.nbytes}}
        head = json.dumps({"inputs": [binary], "outputs": outputs}).encode()
        yield f"/v2, binary: {name}", Sent(path, {LENGTH: str(len(head))}, head + values.tobytes())
    files = [{"name": "images", "datatype": "BYTES", "shape": [len(many)]}]
    files[0]["data"] = [base64.b64encode(file).decode() for file in many]
    yield "/v2, JSON: 64 image files, all classes", as_json(path, {"inputs": files, "outputs": classified})
    for name, raw, classes in (
        ("raw tensor", True, 0),
        ("tensor of numbers", False, 0),
        ("all classes", True, target.classes),
    ):
        message = messages.ModelInferRequest(model_name=target.name)
        added = message.inputs.add(name="images", datatype="FP32", shape=values.shape)
        if raw:
            message.raw_input_contents.append(values.tobytes())
        else:
            added.contents.fp32_contents.extend(values.ravel().tolist())
        if classes:
            message.outputs.add(name=target.output).parameters["classification"].int64_param = classes
        yield f"gRPC: {name}", Sent(None, {}, message.SerializeToString())
    message = messages.ModelInferRequest(model_name=target.name)
    message.inputs.add(name="images", datatype="BYTES", shape=[len(many)])
    message.raw_input_contents.append(b"".join(struct.pack("<I", len(file)) + file for file in many))
    yield "gRPC: 64 image files", Sent(None, {}, message.SerializeToString())


def send(port: int, grpc_port: int, sent: Sent, seconds: float, replies: Any) -> None:
    """Send a request again and again; runs in a process of its own."""
    ask = _http(port, sent) if sent.path is not None else _grpc(grpc_port, sent)
    ends = time.monotonic() + seconds
    reply = ask()
    count = 1
    while time.monotonic() < ends:
        ask()
        count += 1
    replies.put((reply, count))


def _http(port: int, sent: Sent) -> Callable[[], str]:
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def ask() -> str:
        connection.request("POST", sent.path or "", sent.body, sent.headers)
        response = connection.getresponse()
        return f"{response.status}, {len(response.read()) / 1e6:.1f} MB"

    return ask


def _grpc(port: int, sent: Sent) -> Callable[[], str]:
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    call = grpc.insecure_channel(f"127.0.0.1:{port}", unlimited).unary_unary(INFER)

    def ask() -> str:
        try:
            return f"OK, {len(call(sent.body)) / 1e6:.1f} MB"
        except grpc.RpcError as error:
            return str(error.code().name)

    return ask


def longest_wait_ms(port: int, until: Callable[[], bool]) -> float:
    """Ask for `/healthz` until a condition holds, and return the milliseconds of the slowest answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    longest = 0.0
    while not until():
        began = time.perf_counter()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        longest = max(longest, time.perf_counter() - began)
        time.sleep(0.001)
    return longest * 1000


def describe(port: int, name: str) -> Target:
    """Ask the server what requests need to know of its model."""
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def get(path: str) -> Any:
        connection.request("GET", path)
        return json.load(connection.getresponse())

    model = get(f"/v1/models/{name}")
    tensors = get(f"/v2/models/{name}")
    how = model["preprocessing"]
    sets = (model["provenance"].get("calibration") or {}).get("prediction_sets") or {}
    return Target(
        name,
        [3, how["height"], how["width"]],
        tensors["outputs"][0]["name"],
        len(model["labels"]),
        len(model["members"]),
        list(sets.get("lac", {}).get("thresholds", {})),
    )


def main() -> None:
    """Serve the repository, and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=2, help="of each trial")
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument(
        "--only", default="", help="only requests whose name contains one of these, with commas between"
    )
    options = parser.parse_args()
    register_heic()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        settings = {"COSERVE_DEADLINE_MS": "60000", "COSERVE_GRPC_PORT": "0", "COSERVE_LOG_LEVEL": "warning"}
        with serving(options.repository, options.model, log, **settings) as (port, server):
            assert server.stdout is not None
            grpc_port = int(next(line for line in server.stdout if "gRPC" in line).rpartition(":")[2])
            target = describe(port, options.model)
            ends = time.monotonic() + options.seconds
            idle = longest_wait_ms(port, lambda: time.monotonic() > ends)
            print(f"{'nothing':49} {idle:7.1f} ms")
            for name, sent in requests(target):
                if not any(only in name for only in options.only.split(",")):
                    continue
                waits = []
                for _ in range(options.trials):
                    replies = spawn.Queue()
                    work = (port, grpc_port, sent, options.seconds, replies)
                    sender = spawn.Process(target=send, args=work)
                    sender.start()
                    waits.append(longest_wait_ms(port, lambda sender=sender: not sender.is_alive()))
                reply, count = replies.get()
                print(f"{name:49} {min(waits):7.1f} ms   {count:4} requests, the first: {reply}", flush=True)


if __name__ == "__main__":
    main()
