"""Runs the examples of docs/guides/using/python-server.md in order, in a program of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server.onnx_repository import write_repository

PAGE = (Path(__file__).parents[2] / "docs/guides/using/python-server.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$(?:\n\n^```\n(.*?)^```$)?", PAGE, re.M | re.S)

ASK = """
import httpx
from starlette.routing import Router

async def ask(application, lifespan, prefix):
    async with lifespan(application):
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url=f"http://test{prefix}/") as http:
            assert (await http.get("readyz")).json() == {"status": "ready"}
            assert [one["name"] for one in (await http.get("v1/models")).json()["models"]] == ["pair"]
            assert (await http.get("v1/models/cow")).json()["type"] == "/problems/unknown-model"
            assert list((await http.get("v2/models/cow")).json()) == ["error"]

asyncio.run(ask(app, app.lifespan_context, ""))
asyncio.run(ask(site, site.router.lifespan_context, "/classification"))
print("answered")
"""

STOPPED_WHEN_ANNOUNCED = """
announced = asyncio.Event()


def print(text: str) -> None:
    sys.stdout.write(text + "\\n")
    announced.set()


async def stopped() -> None:
    task = asyncio.create_task(main())
    await asyncio.wait_for(announced.wait(), 60)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


import sys

asyncio.run(stopped())
sys.stdout.write("stopped\\n")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_repository(tmp_path / "model_repository")
    return tmp_path


def run(folder: Path, program: str) -> str:
    command = [sys.executable, "-W", "error::ResourceWarning", "-c", program]
    free = {**os.environ, "COSERVE_PORT": "0"}
    done = subprocess.run(command, cwd=folder, env=free, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_server_runs_until_its_task_is_cancelled(folder: Path) -> None:
    code, _ = EXAMPLES[0]
    assert "port=8000" in code
    assert code.endswith("asyncio.run(main())\n")
    free = code.replace("port=8000", "port=0").removesuffix("asyncio.run(main())\n")
    output = run(folder, free + STOPPED_WHEN_ANNOUNCED)
    assert output.startswith("Coserve at http://127.0.0.1:")
    assert output.endswith("stopped\n")


def test_the_other_examples(folder: Path) -> None:
    program = "import asyncio\nfrom coserve_server import load_settings, serve\n"
    program += "".join(code for code, _ in EXAMPLES[1:]) + ASK
    shown = "".join(output for _, output in EXAMPLES[1:])
    assert run(folder, program) == f"{shown}answered\n"


def test_every_example_is_run() -> None:
    assert len(EXAMPLES) == PAGE.count("```python") == 4
