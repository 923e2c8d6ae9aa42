"""Features of every call over gRPC: keys, ids, metrics, logs, traces; health and reflection."""

import asyncio
import json
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.json_format import MessageToDict
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from tritonclient.grpc import service_pb2 as messages

from coserve_server.api.grpc.service import INFERENCE
from coserve_server.observability.tracing import Tracer
from coserve_server.security.keys import Role, create_key
from tests.server.api.application import ask_app
from tests.server.api.grpc.calls import METHOD, Served, failure, request, run, serving, trailers
from tests.server.fake_engine import FakeEngine, ReadingEngine, ensemble
from tests.server.otlp import attributes, collector

INFER = f"{METHOD}ModelInfer"


def engine() -> ReadingEngine:
    return ReadingEngine(ensemble(), ensemble(name="other"))


async def call_empty(served: Served, method: str, metadata: Any = ()) -> grpc.StatusCode:
    """The status of a call with an empty message."""
    call = served.channel.unary_unary(method)(b"", metadata=metadata)
    return await call.code()


def test_every_method_but_health_and_the_description_needs_a_key(tmp_path: Path) -> None:
    key = create_key(tmp_path / "keys", "lab", "infer")

    async def test(served: Served) -> None:
        methods = [f"{METHOD}{one.name}" for one in INFERENCE.methods] + ["/no.Service/Method", "/"]
        codes = {method: await call_empty(served, method) for method in methods}
        opened = {METHOD + name for name in ("ServerLive", "ServerReady")}
        assert {method for method, code in codes.items() if code is StatusCode.OK} == opened
        assert {codes[method] for method in codes.keys() - opened} == {StatusCode.UNAUTHENTICATED}
        assert await call_empty(served, "/grpc.health.v1.Health/Check") is StatusCode.OK
        for metadata in ([("authorization", f"Bearer {key}")], [("x-api-key", key)]):
            assert await served.stub.ModelInfer(request(), metadata=metadata)
            assert await call_empty(served, f"{METHOD}CudaSharedMemoryStatus", metadata) is (
                StatusCode.UNIMPLEMENTED
            )
        for metadata in ([("authorization", key)], [("x-api-key", ""), ("x-api-key", f"{key}x")]):
            error = await failure(served.stub.ModelInfer(request(), metadata=metadata))
            assert error.code() is StatusCode.UNAUTHENTICATED
            assert key not in str(error.details())

    run(engine(), test, keys=tmp_path / "keys")


@pytest.mark.parametrize("role", ["infer", "admin"])
def test_calls_that_change_the_server_need_the_role(tmp_path: Path, role: Role) -> None:
    key = create_key(tmp_path / "keys", "lab", role)

    async def test(served: Served) -> None:
        loads = served.channel.unary_unary(f"{METHOD}RepositoryModelLoad")
        error = await failure(loads(b"\xff", metadata=[("x-api-key", key)]))
        # A broken message gets past a key with the role.
        assert error.code() is (
            StatusCode.INVALID_ARGUMENT if role == "admin" else StatusCode.PERMISSION_DENIED
        )

    run(engine(), test, keys=tmp_path / "keys", repository_control=True, reloader=object())


def test_without_keys_strangers_and_browsers_change_nothing() -> None:
    async def refused(served: Served) -> None:
        call = served.stub.RepositoryModelUnload(
            messages.RepositoryModelUnloadRequest(model_name="pair"), metadata=[("origin", "http://evil")]
        )
        assert (await failure(call)).code() is StatusCode.PERMISSION_DENIED

    run(engine(), refused, repository_control=True)

    async def off(served: Served) -> None:
        error = await failure(served.stub.RepositoryModelLoad(messages.RepositoryModelLoadRequest()))
        assert error.code() is StatusCode.UNIMPLEMENTED
        assert "set repository_control to true" in str(error.details())

    run(engine(), off)


def test_descriptions_are_those_of_v2() -> None:
    async def test(served: Served) -> None:
        await served.stub.ModelInfer(request())

        async def rest(method: str, path: str) -> Any:
            response = await asyncio.to_thread(ask_app, served.app, method, path)
            assert response.status_code == 200
            return response.json()

        def plain(message: Any) -> Any:
            """Return the message as JSON, with 64-bit integers as numbers."""
            written = MessageToDict(
                message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
            )
            return json.loads(json.dumps(written), object_hook=_with_numbers)

        stub = served.stub
        assert plain(await stub.ServerMetadata(messages.ServerMetadataRequest())) == await rest("GET", "/v2")
        metadata = await stub.ModelMetadata(messages.ModelMetadataRequest(name="pair"))
        described = plain(metadata)
        wanted = await rest("GET", "/v2/models/pair")
        assert {name: described[name] for name in wanted} == wanted
        config = plain((await stub.ModelConfig(messages.ModelConfigRequest(name="pair"))).config)
        assert _shared(await rest("GET", "/v2/models/pair/config"), config)
        for name in ("pair", ""):
            statistics = plain(await stub.ModelStatistics(messages.ModelStatisticsRequest(name=name)))
            path = "/v2/models/pair/stats" if name else "/v2/models/stats"
            assert _shared(await rest("GET", path), statistics)
        index = plain(await stub.RepositoryIndex(messages.RepositoryIndexRequest()))
        assert index["models"] == await rest("POST", "/v2/repository/index")
        named = await failure(
            stub.RepositoryIndex(messages.RepositoryIndexRequest(repository_name="/models"))
        )
        assert "repository_name is not supported" in str(named.details())

    run(engine(), test)


def _with_numbers(fields: dict[str, Any]) -> dict[str, Any]:
    """64-bit numbers are strings in protobuf's JSON."""

    def number(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [number(name, one) for one in value]
        digits = isinstance(value, str) and value.lstrip("-").isdecimal()
        return int(value) if digits and name not in ("version", "versions") else value

    return {name: number(name, value) for name, value in fields.items()}


def _shared(wanted: Any, got: Any) -> bool:
    """Return whether all of `wanted` is in `got`, which may have more keys."""
    if isinstance(wanted, dict):
        return all(_shared(value, got[name]) for name, value in wanted.items())
    if isinstance(wanted, list):
        return len(wanted) == len(got) and all(map(_shared, wanted, got))
    return bool(wanted == got)


def test_readiness_follows_the_catalogue() -> None:
    fake = engine()

    async def test(served: Served) -> None:
        async def ready() -> list[bool]:
            server = await served.stub.ServerReady(messages.ServerReadyRequest())
            model = await served.stub.ModelReady(messages.ModelReadyRequest(name="pair"))
            return [server.ready, model.ready]

        assert await ready() == [True, True]
        fake.ready = False
        assert await ready() == [False, False]
        assert (await served.stub.ServerLive(messages.ServerLiveRequest())).live
        unknown = await failure(served.stub.ModelReady(messages.ModelReadyRequest(name="cow")))
        assert unknown.code() is StatusCode.NOT_FOUND

    run(fake, test)


def test_health_is_served_until_the_server_stops() -> None:
    async def test(served: Served) -> None:
        health = health_pb2_grpc.HealthStub(served.channel)

        async def status(service: str) -> int:
            return int((await health.Check(health_pb2.HealthCheckRequest(service=service))).status)

        names = ["", "inference.GRPCInferenceService", "grpc.health.v1.Health"]
        watch = health.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        assert {await status(name) for name in names} == {health_pb2.HealthCheckResponse.SERVING}
        assert (await failure(status("cow"))).code() is StatusCode.NOT_FOUND
        stranger = health.Watch(health_pb2.HealthCheckRequest(service="cow"))
        assert (await stranger.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        served.core.catalogue.drain()
        assert {await status(name) for name in names} == {health_pb2.HealthCheckResponse.NOT_SERVING}
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await served.stub.ModelInfer(request()), "it still answers"
        await served.server.stop(3600)
        assert (await failure(watch.read())).code() is StatusCode.UNAVAILABLE

    run(engine(), test)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_describes_the_services(version: str) -> None:
    async def test(served: Served) -> None:
        method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
        ask = served.channel.stream_stream(
            method,
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        questions = [
            reflection_pb2.ServerReflectionRequest(list_services="*"),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=INFERENCE.full_name),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="cow"),
        ]
        listed, file, unknown = [answer async for answer in ask(iter(questions))]
        names = {service.name for service in listed.list_services_response.service}
        assert names >= {INFERENCE.full_name, "grpc.health.v1.Health"}
        assert len(file.file_descriptor_response.file_descriptor_proto) == 2
        assert unknown.error_response.error_code == StatusCode.NOT_FOUND.value[0]

    assert reflection_pb2_grpc.ServerReflectionStub
    run(engine(), test)


def test_ids_go_both_ways(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    async def test(served: Served) -> None:
        call = served.stub.ModelInfer(request(), metadata=[("x-request-id", "mine")])
        await call
        assert dict(iter(await call.trailing_metadata()))["x-request-id"] == "mine"
        error = await failure(served.stub.ModelInfer(request(model="cow")))
        assert len(trailers(error)["x-request-id"]) == 32
        async for _ in served.stub.ModelStreamInfer(iter([request()]), metadata=[("x-request-id", "other")]):
            pass
        lines = [record for record in caplog.records if record.name == "coserve_server.access"]
        assert [line.getMessage().rsplit(" ", 2)[0] for line in lines] == [
            f"GRPC {INFER} OK",
            f"GRPC {INFER} NOT_FOUND",
            f"GRPC {METHOD}ModelStreamInfer OK",
        ]
        fields = [(vars(line)["status"], vars(line)["client"], vars(line).get("problem")) for line in lines]
        assert fields[1] == ("NOT_FOUND", "127.0.0.1", "unknown-model")
        assert served.core.metrics.requests == {
            ("pair", INFER, "OK"): 1,
            ("", INFER, "NOT_FOUND"): 1,
            ("pair", f"{METHOD}ModelStreamInfer", "OK"): 1,
        }
        assert served.core.metrics.refused == {(INFER, "unknown-model"): 1}
        assert served.core.metrics.models["pair"].images == 6
        assert await call_empty(served, "/a/b") is StatusCode.UNIMPLEMENTED
        assert served.core.metrics.requests["", "unmatched", "UNIMPLEMENTED"] == 1

    run(engine(), test)


def test_a_bug_is_an_internal_error_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    async def test(served: Served) -> None:
        error = await failure(served.stub.ModelInfer(request()))
        assert error.code() is StatusCode.INTERNAL
        assert error.details() == "internal error; see the server's log"
        assert served.core.in_flight == 0

    run(FakeEngine(ensemble()), test)
    assert "the test has no script for this batch" in caplog.text


def test_traces() -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    metadata = [("traceparent", f"00-{trace}-b7ad6b7169203331-01")]

    async def go(url: str) -> str:
        tracer = Tracer(url)
        async with serving(engine(), tracer=tracer) as served:
            call = served.stub.ModelInfer(request(), metadata=metadata)
            await call
            await failure(served.stub.ModelInfer(request(model="cow"), metadata=metadata))
            response = dict(iter(await call.trailing_metadata()))["traceresponse"]
        await tracer.close()
        return str(response)

    with collector() as received:
        response = asyncio.run(go(received.url))
    roots = [span for span in received.spans if span.name == f"GRPC {INFER}"]
    assert {span.trace_id.hex() for span in roots} == {trace}
    good = next(span for span in roots if attributes(span)["rpc.grpc.status_code"] == 0)
    assert response == f"00-{trace}-{good.span_id.hex()}-01"
    said = attributes(good)
    assert (said["rpc.system"], said["rpc.service"], said["rpc.method"]) == (
        "grpc",
        "inference.GRPCInferenceService",
        "ModelInfer",
    )
    assert {span.status.code for span in roots} == {Status.STATUS_CODE_UNSET}, "it was the client's fault"
    assert "inference" in {span.name for span in received.spans}
