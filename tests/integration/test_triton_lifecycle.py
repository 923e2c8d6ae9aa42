"""Starting and stopping Triton servers, cleanly or not, must leave nothing behind."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.integration.conftest import COSERVE, StartTriton, Triton
from tests.server.onnx_repository import limit_instances, read_config, write_config, write_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_repository(tmp_path_factory.mktemp("triton") / "repository", "one", members=1)
    return limit_instances(folder)


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Path]]:
    """Return a function that lists what this test's servers have on disk and in shared memory."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    prefixes: set[str] = set()

    def find() -> list[Path]:
        folders = list(place.iterdir())
        prefixes.update(folder.name for folder in folders)
        return folders + [path for prefix in prefixes for path in Path("/dev/shm").glob(f"{prefix}*")]

    return find


def eventually(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def runs(pid: int) -> bool:
    """Return whether a process exists and is not a zombie: in some containers nobody reaps orphans."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def refused(*arguments: object) -> str:
    """Return the last line of `coserve triton`, which cannot start; Triton's log comes before it."""
    done = subprocess.run(
        [COSERVE, "triton", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    return last


def test_it_stops_on_request(triton: StartTriton, repository: Path, traces: Callable[[], list[Path]]) -> None:
    server = triton(repository)
    assert len(traces()) >= 2, "a folder and shared memory"
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0
    assert not runs(server.pid)
    assert traces() == []


def test_it_stops_a_server_that_hangs(
    triton: StartTriton, repository: Path, traces: Callable[[], list[Path]]
) -> None:
    server = triton(repository)
    assert traces()
    server.signal(signal.SIGSTOP)
    assert server.stop() == 0
    assert not runs(server.pid)
    assert traces() == []


def test_it_ends_with_a_server_that_is_killed(
    triton: StartTriton, repository: Path, traces: Callable[[], list[Path]], capfd: pytest.CaptureFixture[str]
) -> None:
    server = triton(repository)
    assert traces()
    server.signal(signal.SIGKILL)
    assert server.process.wait(60) == 1
    assert capfd.readouterr().err.splitlines()[-1] == "error: Triton was killed by signal 9"
    assert traces() == []


def test_the_server_ends_with_a_launcher_that_is_killed(
    triton: StartTriton, repository: Path, traces: Callable[[], list[Path]]
) -> None:
    server = triton(repository)
    assert traces()
    server.process.kill()
    assert eventually(lambda: not runs(server.pid))
    assert eventually(lambda: traces() == [])


def test_it_stops_while_it_starts(repository: Path, traces: Callable[[], list[Path]]) -> None:
    process = subprocess.Popen(
        [COSERVE, "triton", "--repository", repository], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    assert first, "Triton's log"
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert traces() == []


@pytest.mark.parametrize("option", ["--http-port", "--grpc-port", "--metrics-port"])
def test_a_port_that_is_taken(repository: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused("--repository", repository, option, port)
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in message
    message = refused("--repository", repository, "--host", "::1")
    assert "cannot listen on ::1: Triton takes names and IPv4 addresses here" in message


def test_ports_that_are_given_are_used(triton: StartTriton, repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server: Triton = triton(repository, "--grpc-port", str(port))
    assert server.grpc == f"127.0.0.1:{port}"
    assert server.stop() == 0


def test_a_model_that_cannot_be_loaded(
    repository: Path, tmp_path: Path, traces: Callable[[], list[Path]]
) -> None:
    broken = write_repository(tmp_path / "repository", "one", members=1)
    model = broken / "one_member0/1/model.onnx"
    model.write_bytes(b"no network")
    message = refused("--repository", broken, "--", "--exit-on-error=true")
    assert "failed to load 'one_member0' version 1" in message
    assert f"{model} cannot be loaded" in message
    assert "Protobuf parsing failed" in message
    assert traces() == []


def test_a_repository_without_a_sound_model(tmp_path: Path, traces: Callable[[], list[Path]]) -> None:
    broken = write_repository(tmp_path / "repository", "one", members=1)
    config = read_config(broken / "one_member0")
    config.output.add(name="extra", data_type="TYPE_FP32", dims=[4])
    write_config(broken / "one_member0", config)
    (broken / "one_mean/config.pbtxt").write_text("max_batch_size: many")
    message = refused("--repository", broken)
    assert message.startswith("error: Triton could not load any model: ")
    assert "one_member0/1/model.onnx has no output extra, only logits" in message
    assert "one_mean is not ready: failed to read text proto" in message
    assert traces() == []


def test_models_that_fail_are_named_and_the_others_served(triton: StartTriton, tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "repository", "pair")
    limit_instances(write_repository(repository, "odd", members=1))
    (repository / "pair_member1/1/model.onnx").write_bytes(b"no network")
    (repository / "odd_member0/config.pbtxt").write_text("max_batch_size: many")
    (repository / "lost+found").mkdir()
    server = triton(repository)
    assert {model["name"] for model in server.models if model["ready"]} == {
        "pair_member0",
        "pair_mean",
        "odd_mean",
    }
    faults = {model["name"]: model["reason"] for model in server.models if not model["ready"]}
    assert "Protobuf parsing failed" in faults.pop("pair_member1")
    assert faults.pop("lost+found").startswith("failed to open text file for read")
    assert faults == {
        "pair": "depends on 'pair_member1' which has no loaded version",
        "odd": "contains models that are not available or ambiguous: odd_member0",
        "odd_member0": f"failed to read text proto from {repository}/odd_member0/config.pbtxt",
    }
    assert httpx.get(f"http://{server.http}/v2/health/ready").status_code == 400
    assert server.stop() == 0


def test_a_repository_that_is_not_a_folder(tmp_path: Path) -> None:
    assert refused("--repository", tmp_path / "none").endswith("none is not a folder")
