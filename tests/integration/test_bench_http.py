"""`coserve bench http` against real servers, one of them over HTTPS and with keys."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme
from typer.testing import CliRunner, Result

from coserve_bench.http.results import STAGES
from coserve_cli.main import app
from tests.integration.conftest import COSERVE, Serve, Server
from tests.integration.gateway import BLACK, LIME, RED
from tests.server.onnx_repository import FAILS, write_repository

Bench = Callable[..., "subprocess.CompletedProcess[str]"]
SHORT = ["--rounds", 2, "--seconds", 0.3, "--warm-up", 0.1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_repository(folder / "models", "pair")
    write_repository(folder / "models", "faulty", faults={0: FAILS})
    (folder / "images").mkdir()
    for name, image in (("red", RED), ("lime", LIME)):
        (folder / "images" / f"{name}.png").write_bytes(image)
    (folder / "black.png").write_bytes(BLACK)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def server(serve: Serve, folder: Path) -> Server:
    return serve(folder / "models", "--default-model", "pair", "--min-members", "1")


def refused(*options: str, url: str, key: str = "") -> Result:
    """Run the command with options that it refuses before it measures anything."""
    variables = {"COSERVE_URL": url, "COSERVE_API_KEY": key}
    return CliRunner().invoke(app, ["bench", "http", *options], env=variables)


@pytest.fixture
def bench(folder: Path) -> Bench:
    def run(*options: object, **variables: str) -> "subprocess.CompletedProcess[str]":
        command = [COSERVE, "bench", "http", *map(str, options)]
        environment = {name: value for name, value in os.environ.items() if name != "COSERVE_API_KEY"}
        return subprocess.run(
            command, env=environment | variables, capture_output=True, text=True, timeout=120, cwd=folder
        )

    return run


def test_closed_and_open_loops_and_the_engine(bench: Bench, server: Server, folder: Path) -> None:
    loads = ["--concurrency", "1,4", "--rate", "30", "--image", "images", "--image", "black.png"]
    options = ["--url", server.url, *loads, *SHORT, "--repository", "models"]
    done = bench(*options, "--output", "out.json", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert json.loads((folder / "out.json").read_text()) == report
    (folder / "out.json").unlink()
    assert (report["model"], report["version"], report["images"], report["complete"]) == (
        "pair",
        "1",
        3,
        True,
    )
    one, _, rate = report["loads"]
    assert [load["load"] for load in report["loads"]] == ["closed, 1", "closed, 4", "open, 30/s"]
    for load in report["loads"]:
        assert load["errors"] == {}
        assert load["degraded"] == 0
        assert load["answered"] > 2
        assert len(load["requests_per_s_by_round"]) == 2
        latency = load["latency_ms"]
        stages = load["stages_ms"]
        assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
        assert list(stages) == [*STAGES, "other", "outside", "total"]
        parts = sum(stage["mean"] for name, stage in stages.items() if name != "total")
        assert parts + load["generator"]["late_ms"]["mean"] == pytest.approx(latency["mean"], rel=0.02)
        assert stages["inference"]["mean"] < load["round_trip_ms"]["mean"]
        overhead = load["round_trip_ms"]["mean"] - stages["inference"]["mean"]
        assert load["overhead_ms"]["mean"] == pytest.approx(overhead, rel=0.02)
        assert 0 < load["generator"]["cores"] < 1
    assert rate["requested_per_s"] == 30
    engine = report["engine"]
    assert list(engine["images_per_s"]) == ["1", "4", "8"], "up to the ensemble's max_batch_size"
    added = one["latency_ms"]["p50"] - engine["latency_ms"]["p50"]
    assert engine["gateway_adds_ms"] == pytest.approx(added, abs=2e-3)
    assert list(engine["gateway_reaches"]) == ["closed, 1", "closed, 4"]


def test_the_table_and_answers_that_lack_members(bench: Bench, server: Server) -> None:
    options = ["--url", server.url, "--model", "faulty", "--image", "images/red.png", "--rate", "50"]
    done = bench(*options, *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"faulty version 1 at {server.url}: 1 image of 0.1 kB, 2 × 0.3 s per load"
    assert [line.split()[:2] for line in lines[2:4]] == [["load", "answers/s"], ["open,", "50/s"]]
    assert lines[5].split() == ["mean", "ms", "late", *STAGES, "other", "outside", "latency"]
    assert lines[8].startswith("open, 50/s: ")
    assert lines[8].endswith(" answers lack members")
    assert lines[9].startswith("load generator: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "none.png"], "cannot read none.png: No such file or directory"),
        (["--image", "models"], "no images in models"),
        (["--image", "notes.txt"], "notes.txt cannot be used: image 0 (notes.txt): not an image"),
        (["--image", "images", "--model", "cats"], "model 'cats' is not served; choose from faulty, pair"),
        (["--image", "images", "--url", "http://127.0.0.1:1"], "no server answers at http://127.0.0.1:1"),
        (["--image", "images", "--url", "here"], "'here' is not a valid URL"),
        (["--image", "images", "--repository", "images"], "images has no ensemble"),
        (["--image", "images", "--output", "none/out.json"], "cannot write none/out.json: No such file"),
        (["--image", "images", "--cacert", "notes.txt"], "cannot load PEM certificates from notes.txt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_measured_is_one_line(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    monkeypatch.chdir(folder)
    done = refused(*options, url=server.url)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--rate", "0"],
        ["--concurrency", "1,x"],
        ["--rate", "inf"],
        ["--rounds", "0"],
        ["--seconds", "inf"],
        ["--seconds", "nan"],
        ["--warm-up", "inf"],
        ["--timeout", "inf"],
    ],
    ids=" ".join,
)
def test_options_that_cannot_be(server: Server, options: list[str]) -> None:
    assert refused("--image", "images", *options, url=server.url).exit_code == 2


@pytest.mark.timeout(30)
def test_the_timeout_holds_for_the_first_answer_too(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = refused("--image", str(folder / "black.png"), "--timeout", "0.2", url=url)
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == f"error: {url} did not answer in time (ReadTimeout)\n"


def test_a_load_too_short_for_a_request(bench: Bench, server: Server) -> None:
    seldom = ["--rate", "0.001", "--seconds", "0.1", "--warm-up", "0", "--rounds", "1"]
    done = bench("--url", server.url, "--image", "images", *seldom)
    reason = "nothing was answered: no request was due in time, give more --seconds"
    assert (done.returncode, done.stderr) == (1, f"error: {reason}\n")
    assert "open, 0.001/s" in done.stdout


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    done = refused("--image", "images", url="http://127.0.0.1:1")
    assert (done.exit_code, done.stderr) == (1, "error: uvloop not installed: pip install 'coserve[bench]'\n")


@pytest.fixture(scope="module")
def secure(serve: Serve, folder: Path) -> tuple[Server, str]:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    issued = authority.issue_cert("127.0.0.1")
    certificate = folder / "server.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(certificate)
    create = [COSERVE, "keys", "create", "lab", "--file", folder / "keys"]
    key = subprocess.run(create, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    options = ["--api-keys-file", folder / "keys", "--tls-certificate", certificate, "--tls-key", certificate]
    return serve(folder / "models", "--default-model", "pair", *map(str, options)), key


def test_keys_and_certificates(bench: Bench, secure: tuple[Server, str], folder: Path) -> None:
    server, key = secure
    options = ["--url", server.url, "--image", "images", "--concurrency", "2", *SHORT]
    done = bench(*options, "--cacert", "ca.pem", "--json", COSERVE_API_KEY=key)
    assert (done.returncode, done.stderr) == (0, "")
    (load,) = json.loads(done.stdout)["loads"]
    assert load["answered"] > 2
    assert load["errors"] == {}
    request = ["--image", str(folder / "black.png")]
    stranger = refused(*request, "--cacert", str(folder / "ca.pem"), url=server.url)
    assert (stranger.exit_code, stranger.stdout) == (1, "")
    assert stranger.stderr.startswith("error: an API key is needed")
    careful = refused(*request, url=server.url, key=key)
    assert (careful.exit_code, careful.stdout) == (1, "")
    assert "certificate" in careful.stderr


def test_a_client_certificate(serve: Serve, bench: Bench, secure: tuple[Server, str], folder: Path) -> None:
    own = str(folder / "server.pem")
    server = serve(
        *(folder / "models", "--default-model", "pair", "--tls-certificate", own, "--tls-key", own),
        tls_client_authorities=folder / "ca.pem",
    )
    options = ["--url", server.url, "--image", "images", "--cacert", "ca.pem", "--concurrency", "2", *SHORT]
    for shown in (["--cert", own], ["--cert", own, "--key", own]):
        done = bench(*options, *shown, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        (load,) = json.loads(done.stdout)["loads"]
        assert load["answered"] > 2
        assert load["errors"] == {}
    trusting = ["--image", str(folder / "black.png"), "--cacert", str(folder / "ca.pem")]
    stranger = refused(*trusting, url=server.url)
    assert (stranger.exit_code, stranger.stdout) == (1, "")
    assert "require a client certificate" in stranger.stderr
    assert refused(*trusting, "--key", own, url=server.url).exit_code == 2
