"""Changing, breaking, adding and removing ensembles in the files of a real server under load."""

import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import Serve, Server
from tests.integration.gateway import RED, classify, problem, refused, until_ready
from tests.integration.load import PNG, Load, check_versions_are_not_mixed, logits_by_version, until
from tests.server.onnx_repository import NAN, add_version, read_config, write_config, write_repository


def get(server: Server, path: str) -> Any:
    with server.http() as http:
        return http.get(path).raise_for_status().json()


def until_served(server: Server, version: int, model: str = "pair") -> None:
    until(lambda: get(server, f"/v1/models/{model}")["version"] == str(version))


def threads(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/task").iterdir()))


def test_every_answer_is_of_one_generation_and_none_is_lost(serve: Serve, tmp_path: Path) -> None:
    write_repository(tmp_path)
    server = serve(tmp_path, repository_poll_ms=30)
    versions = range(1, 10)
    with Load(server) as load:
        before = threads(server)
        for version in versions[1:]:
            add_version(tmp_path, "pair", version)
            until_served(server, version)
        load.wait_for_more()
    assert load.failures == []
    known = logits_by_version(tmp_path, versions)
    assert check_versions_are_not_mixed(load.answers, known) == set(known)
    # The pools for decoding and loading may grow, but the two lanes of each old version must end.
    until(lambda: threads(server) < before + len(versions))


def test_a_version_replaced_in_place_is_taken_over(serve: Serve, tmp_path: Path) -> None:
    """The version keeps its number and gets other networks, as `coserve export --overwrite` writes them."""
    served = write_repository(tmp_path / "served")
    other = write_repository(tmp_path / "other")
    add_version(other, "pair", 2)
    server = serve(served, repository_poll_ms=30)
    first = logits_of(server)
    with Load(server) as load:
        for index in range(2):
            name = f"pair_member{index}"
            (other / name / "2/model.onnx").rename(served / name / "1/model.onnx")
        until(lambda: logits_of(server) != first)
    assert load.failures == []


def logits_of(server: Server) -> list[float]:
    (result,) = classify(server, RED, model="pair").raise_for_status().json()["results"]
    return [one["logit"] for one in result["predictions"]]


@pytest.mark.parametrize("broken", [{"cut_off": 1}, {"faults": {1: NAN}}])
def test_a_broken_version_leaves_the_old_one(serve: Serve, tmp_path: Path, broken: dict[str, Any]) -> None:
    write_repository(tmp_path)
    server = serve(tmp_path, repository_poll_ms=30)
    with Load(server) as load:
        add_version(tmp_path, "pair", 2, **broken)
        until(lambda: get(server, "/v1/models/pair")["load_error"] is not None)
        load.wait_for_more()
        model = get(server, "/v1/models/pair")
        assert (model["version"], model["versions"], model["ready"]) == ("1", ["1"], True)
        assert str(tmp_path / "pair_member1/2/model.onnx") in model["load_error"]
        assert get(server, "/readyz") == {"status": "ready"}
        with server.http() as http:
            (listed,) = http.post("/v2/repository/index").json()
        assert listed == {
            "name": "pair",
            "version": "1",
            "state": "READY",
            "reason": model["load_error"],
        }
        add_version(tmp_path, "pair", 3)
        until_served(server, 3)
        assert get(server, "/v1/models/pair")["load_error"] is None
    assert load.failures == []
    assert check_versions_are_not_mixed(load.answers, logits_by_version(tmp_path, range(1, 4, 2))) == {
        "1",
        "3",
    }


def test_a_broken_configuration_leaves_the_old_version(serve: Serve, tmp_path: Path) -> None:
    write_repository(tmp_path)
    server = serve(tmp_path, repository_poll_ms=30)
    config = tmp_path / "pair_member0/config.pbtxt"
    sound = config.read_text()
    with Load(server) as load:
        config.write_text("max_batch_size: many")
        until(lambda: get(server, "/v1/models/pair")["load_error"] is not None)
        assert str(config) in get(server, "/v1/models/pair")["load_error"]
        assert str(config) in get(server, "/v1/models")["not_served"]["pair_member0"]
        load.wait_for_more()
        config.write_text(sound)
        until(lambda: get(server, "/v1/models/pair")["load_error"] is None)
    assert load.failures == []
    assert get(server, "/v1/models")["not_served"] == {}


def test_what_is_broken_at_the_start_is_listed_and_its_repair_served(serve: Serve, tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "models")
    broken = write_repository(folder, "broken") / "broken_member1/1/model.onnx"
    sound = broken.read_bytes()
    broken.write_bytes(b"no network")
    assert str(broken) in refused("--repository", folder, "--port", "0", "--exit-on-error", "true")
    server = serve(folder, repository_poll_ms=30)
    assert "  not served: broken" in server.announcement
    assert len(logits_of(server)) == 4
    assert get(server, "/readyz") == {"status": "ready", "not_served": ["broken"]}
    reason = get(server, "/v1/models")["not_served"]["broken"]
    assert f"member broken_member1 ({broken}) cannot be loaded" in reason
    with server.http() as http:
        index = {one["name"]: one for one in http.post("/v2/repository/index").json()}
        assert index["broken"] == {"name": "broken", "version": "", "state": "UNAVAILABLE", "reason": reason}
        assert 'coserve_model_load_error{model="broken"} 1.0' in http.get("/metrics").text
        assert problem(classify(server, RED, model="broken"), 503, "no-quorum") == reason
    broken.write_bytes(sound)
    until(lambda: get(server, "/readyz") == {"status": "ready"})
    classify(server, RED, model="broken").raise_for_status()


def test_a_server_with_nothing_to_serve_yet(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    assert refused("--repository", folder, "--port", "0") == f"error: {folder} is not a folder"
    waiting = ("--exit-on-error", "false", "--default-model", "pair")
    server = serve(folder, *waiting, repository_poll_ms=30)
    assert f"  not ready: {folder} is not a folder" in server.announcement
    assert get(server, "/healthz") == {"status": "alive"}
    with server.http() as http:
        assert f"{folder} is not a folder" in problem(http.get("/readyz"), 503, "no-quorum")
    assert f"{folder} is not a folder" in problem(classify(server, RED), 503, "no-quorum")
    write_repository(tmp_path / "built").rename(folder)
    until_ready(server)
    classify(server, RED).raise_for_status()


def test_ensembles_come_and_go(serve: Serve, tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "models")
    server = serve(folder, "--default-model", "pair", repository_poll_ms=30)
    with Load(server) as load:
        built = write_repository(tmp_path / "built", "single", members=1)
        # The ensemble's own folder first; its members come last.
        (built / "single").rename(folder / "single")
        until(lambda: "single" in get(server, "/v1/models")["not_served"])
        with server.http() as http:
            text = problem(http.get("/v1/models/single"), 503, "no-quorum")
        assert "step 'single_member0' has no configuration" in text
        for part in ("single_member0", "single_mean"):
            (built / part).rename(folder / part)
        until(lambda: [one["name"] for one in get(server, "/v1/models")["models"]] == ["pair", "single"])
        assert get(server, "/readyz") == {"status": "ready"}
        shutil.rmtree(folder / "single")
        until(lambda: [one["name"] for one in get(server, "/v1/models")["models"]] == ["pair"])
        with server.http() as http:
            problem(http.get("/v1/models/single"), 404, "unknown-model")
    assert load.failures == []


def test_a_repository_that_is_gone_changes_nothing(serve: Serve, tmp_path: Path) -> None:
    folder = write_repository(tmp_path / "models")
    server = serve(folder, repository_poll_ms=30)
    with Load(server) as load:
        folder.rename(tmp_path / "elsewhere")
        for _ in range(5):
            load.wait_for_more()
        (tmp_path / "elsewhere").rename(folder)
        add_version(folder, "pair", 2)
        until_served(server, 2)
    assert load.failures == []


def test_versions_side_by_side(serve: Serve, tmp_path: Path) -> None:
    write_repository(tmp_path)
    server = serve(tmp_path, "--serve-members", repository_poll_ms=30)
    add_version(tmp_path, "pair", 2, keep=True)
    config = read_config(tmp_path / "pair")
    config.version_policy.latest.num_versions = 2
    write_config(tmp_path / "pair", config)
    until(lambda: get(server, "/v1/models/pair")["versions"] == ["1", "2"])
    known = logits_by_version(tmp_path, range(1, 3))
    with server.http() as http:
        query: dict[str, Any] = {"model": "pair", "member_predictions": True}

        def ask(**more: str) -> httpx.Response:
            return http.post("/v1/classify", content=RED, headers=PNG, params=query | more)

        answers = [ask(), ask(version="1"), ask(version="2")]
        assert [answer.json()["version"] for answer in answers] == ["2", "1", "2"]
        check_versions_are_not_mixed([answer.json() for answer in answers], known)
        assert problem(ask(version="3"), 404, "unknown-model") == (
            "model 'pair' has no version '3'; it has '1', '2'"
        )
        assert http.get("/v2/models/pair").json()["versions"] == ["1", "2"]
        assert http.get("/v2/models/pair/versions/1/ready").json() == {"name": "pair", "ready": True}
        assert http.get("/v2/models/pair/versions/3/ready").status_code == 404
        listed = {(one["name"], one["version"]) for one in http.post("/v2/repository/index").json()}
        members = {(f"pair_member{i}", version) for i in range(2) for version in "12"}
        assert listed == {("pair", "1"), ("pair", "2")} | members

    config.version_policy.specific.versions.append(1)
    write_config(tmp_path / "pair", config)
    until(lambda: get(server, "/v1/models/pair")["versions"] == ["1"])


def test_nothing_changes_between_two_checks(serve: Serve, tmp_path: Path) -> None:
    write_repository(tmp_path)
    server = serve(tmp_path, repository_poll_ms=0)
    add_version(tmp_path, "pair", 2)
    with Load(server) as load:
        for _ in range(5):
            load.wait_for_more()
    assert {answer["version"] for answer in load.answers} == {"1"}
