"""The server inside other programs, which it leaves as they were."""

import asyncio
import contextlib
import gc
import io
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from PIL import Image
from starlette.routing import Router

from coserve_server import create_app, load_settings, serve
from coserve_server.errors import AddressError, RepositoryError, SettingsError
from tests.server.onnx_repository import BUSY, write_repository

Run = Callable[[Coroutine[Any, Any, None]], None]


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


class Serving:
    """A server in a task of this process."""

    def __init__(self, **settings: object) -> None:
        self.announced: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(serve(load_settings(port=0, **settings), self.announced.set_result))

    async def url(self) -> str:
        await asyncio.wait({self.task, self.announced}, return_when=asyncio.FIRST_COMPLETED)
        if self.task.done():
            self.task.result()
        return re.findall(r"http://[\d.:]+", self.announced.result())[0]

    async def stop(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(self.task, 60)


def process_state() -> dict[str, object]:
    return {
        "switch interval": sys.getswitchinterval(),
        "frozen objects": gc.get_freeze_count(),
        "log handlers": list(logging.getLogger().handlers),
        "log levels": [logging.getLogger(name).level for name in ("", "coserve_server", "uvicorn")],
        "signal handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "cores": os.sched_getaffinity(0),
    }


def test_a_server_that_was_stopped_leaves_nothing_behind(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def go() -> None:
        before = process_state()
        serving = Serving(repository=tmp_path)
        async with httpx.AsyncClient(base_url=await serving.url(), trust_env=False) as http:
            assert (await http.get("/readyz")).status_code == 200
            url = http.base_url
        during = process_state()
        await serving.stop()
        async with httpx.AsyncClient(trust_env=False) as http:
            with pytest.raises(httpx.ConnectError):
                await http.get(url)
        assert {**during, "threads": None} == {**before, "threads": None}
        after = process_state()
        # asyncio keeps its own pool.
        names = {name for name in after.pop("threads") if not name.startswith("asyncio")}
        # Those of earlier tests may have ended meanwhile.
        assert names <= set(before.pop("threads"))
        assert after == before

    asyncio.run(go())


def test_requests_in_progress_get_their_answers(tmp_path: Path) -> None:
    write_repository(tmp_path, faults={0: BUSY})

    async def go() -> None:
        serving = Serving(repository=tmp_path, deadline_ms=60_000)
        async with httpx.AsyncClient(base_url=await serving.url(), trust_env=False, timeout=60) as http:
            headers = {"Content-Type": "image/png"}
            request = asyncio.create_task(http.post("/v1/classify", content=png("white"), headers=headers))
            for _ in range(10_000):
                if "in_flight 1.0" in (await http.get("/metrics")).text:
                    break
            await serving.stop()
            assert (await request).status_code == 200

    asyncio.run(go())


def test_cancelling_again_ends_requests_in_progress(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def go() -> None:
        serving = Serving(repository=tmp_path)
        port = int((await serving.url()).rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 9\r\n"
        writer.write(head + b"Content-Type: image/png\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        before = asyncio.all_tasks()
        serving.task.cancel()
        await asyncio.sleep(0)
        await serving.stop()
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()
        assert asyncio.all_tasks() < before
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)

    asyncio.run(go())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_server_that_cannot_be_announced_does_not_listen(tmp_path: Path, run: Run) -> None:
    write_repository(tmp_path)
    ports: list[int] = []

    def announce(summary: str) -> None:
        ports.append(int(re.findall(r"http://127.0.0.1:(\d+)", summary)[0]))
        raise BrokenPipeError

    async def go() -> None:
        with pytest.raises(BrokenPipeError):
            await serve(load_settings(repository=tmp_path, port=0), announce)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", ports[0])

    run(go())


def test_what_prevents_the_start_is_raised(tmp_path: Path) -> None:
    write_repository(tmp_path)

    async def go() -> None:
        with pytest.raises(RepositoryError):
            await serve(load_settings(repository=tmp_path / "none", port=0))
        serving = Serving(repository=tmp_path)
        port = int((await serving.url()).rpartition(":")[2])
        with pytest.raises(AddressError, match=f"cannot listen on 127.0.0.1 port {port}"):
            await serve(load_settings(repository=tmp_path, port=port))
        await serving.stop()

    asyncio.run(go())


def test_a_server_that_cannot_start_leaves_no_thread(tmp_path: Path) -> None:
    write_repository(tmp_path / "models")
    (tmp_path / "file").touch()

    async def go() -> None:
        before = set(threading.enumerate())
        settings = load_settings(
            repository=tmp_path / "models",
            engine="openvino",
            openvino_cache=tmp_path / "file",
            otlp_endpoint="http://127.0.0.1:1",
            port=0,
        )
        with pytest.raises(SettingsError, match="openvino_cache"):
            await serve(settings)
        left = {thread for thread in set(threading.enumerate()) - before if thread.is_alive()}
        assert not {thread for thread in left if not thread.name.startswith("asyncio")}

    asyncio.run(go())


def test_a_head_that_is_refused_gets_an_id_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_repository(tmp_path)

    async def go() -> bytes:
        serving = Serving(repository=tmp_path)
        port = int((await serving.url()).rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"nonsense\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        await serving.stop()
        return answer

    with caplog.at_level(logging.INFO, "coserve_server.transport"):
        answer = asyncio.run(go()).decode()
    (line,) = [record for record in caplog.records if "/problems/bad-request" in record.getMessage()]
    assert f"\r\nX-Request-Id: {vars(line)['request_id']}\r\n" in answer
    assert f'"instance":"{vars(line)["instance"]}"' in answer


def test_a_program_goes_on_after_a_server_that_failed() -> None:
    program = (
        "import asyncio, sys, time\n"
        "from coserve_server import load_settings, serve\n"
        "from coserve_server.errors import StartupError\n"
        "try:\n    asyncio.run(serve(load_settings(repository='none')))\n"
        "except StartupError:\n    time.sleep(3)\n    sys.exit(3)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 3


def test_another_asgi_server_runs_the_application(tmp_path: Path) -> None:
    write_repository(tmp_path)
    command = [sys.executable, "-m", "uvicorn", "--factory", "coserve_server:create_app", "--port", "0"]
    variables = {"COSERVE_REPOSITORY": str(tmp_path)}
    with subprocess.Popen(command, env=os.environ | variables, stderr=subprocess.PIPE, text=True) as host:
        assert host.stderr is not None
        try:
            lines = iter(host.stderr.readline, "")
            address = next(found[0] for line in lines if (found := re.findall(r"http://[\d.:]+\d", line)))
            with httpx.Client(base_url=address, trust_env=False, timeout=60) as http:
                image = {"content": png("red"), "headers": {"Content-Type": "image/png"}}
                answer = http.post("/v1/classify", **image)
                assert answer.status_code == 200, answer.text
                assert len(answer.json()["members"]) == 2
                assert http.get("/v1/models/none").json()["type"] == "/problems/unknown-model"
        finally:
            host.send_signal(signal.SIGTERM)
            rest = host.stderr.read()
    assert "Application shutdown complete" in rest
    assert host.returncode in (0, -signal.SIGTERM)


def test_requests_outside_the_lifespan_fail_with_the_reason(tmp_path: Path) -> None:
    write_repository(tmp_path)
    app = create_app(load_settings(repository=tmp_path))
    assert isinstance(app, Router)

    async def go() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            with pytest.raises(RuntimeError, match="must run the application's lifespan"):
                await http.get("/readyz")
            async with app.lifespan_context(app):
                assert (await http.get("/readyz")).status_code == 200
            with pytest.raises(RuntimeError, match="must run the application's lifespan"):
                await http.get("/readyz")

    asyncio.run(go())


def test_settings_are_checked_when_the_application_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COSERVE_REPOSITORY", raising=False)
    with pytest.raises(Exception, match="repository: engine onnxruntime needs"):
        create_app()
