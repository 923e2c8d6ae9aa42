import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

from coserve_export.ensemble import Description, Member
from coserve_export.errors import RepositoryError
from coserve_export.repository import write_ensemble
from coserve_export.triton_config import to_text
from coserve_export.versions import write_version

Describe = Callable[..., Description]
Tree = Callable[[Path], dict[str, bytes]]
OLD = [Member(b"old0"), Member(b"old1")]
NEW = [Member(b"new0"), Member(b"new1")]
MODELS = ["e_member0", "e_member1", "e_mean"]


@pytest.fixture
def repository(tmp_path: Path, describe: Describe) -> Path:
    repository = tmp_path / "parent" / "repository"
    write_ensemble(repository, describe(), OLD, {"network": "old"})
    return repository


def read(repository: Path, model: str) -> ModelConfig:
    return text_format.Parse((repository / model / "config.pbtxt").read_text(), ModelConfig())


def edit(repository: Path, model: str, change: Callable[[ModelConfig], None]) -> None:
    config = read(repository, model)
    change(config)
    (repository / model / "config.pbtxt").write_text(to_text(config))


def test_an_ensemble_without_the_input_s_format_takes_a_new_version(
    repository: Path, describe: Describe
) -> None:
    """Exports before this field existed have none."""
    for model in ("e", "e_member0", "e_member1"):
        edit(repository, model, lambda config: config.input[0].ClearField("format"))
    assert write_version(repository, describe(), NEW, {}) == 2


def test_a_new_version_is_added_beside_the_old_one(repository: Path, describe: Describe, tree: Tree) -> None:
    before = tree(repository)
    edit(repository, "e", lambda config: config.model_warmup.add(name="kept", batch_size=1))
    old = read(repository, "e")
    version = write_version(repository, describe(weights=[1.0, 3.0]), NEW, {"network": "new"})
    assert version == 2
    after = tree(repository)
    config = read(repository, "e")
    assert set(after) - set(before) == {
        "e/1/config.pbtxt",
        "e/2/.keep",
        *(f"{model}/2/model.onnx" for model in MODELS),
    }
    assert text_format.Parse(after["e/1/config.pbtxt"], ModelConfig()) == old
    changed = {file for file in before if after[file] != before[file]}
    assert changed == {"e/config.pbtxt"}
    assert after["e_member1/2/model.onnx"] == b"new1"
    assert after["e_mean/1/model.onnx"] != after["e_mean/2/model.onnx"], "the new mean is weighted"
    assert {step.model_version for step in config.ensemble_scheduling.step} == {2}
    assert json.loads(config.parameters["weights"].string_value) == [1.0, 3.0]
    assert json.loads(config.parameters["provenance"].string_value) == {"network": "new"}
    assert [warm_up.name for warm_up in config.model_warmup] == ["kept"]
    assert list(repository.parent.iterdir()) == [repository]

    assert write_version(repository, describe(), OLD, {}) == 3
    assert "weights" not in read(repository, "e").parameters


def test_a_repository_whose_steps_run_the_newest_version(repository: Path, describe: Describe) -> None:
    """Older ensembles have steps without versions, and models that serve a single version."""

    def unpin(config: ModelConfig) -> None:
        for step in config.ensemble_scheduling.step:
            step.model_version = -1

    edit(repository, "e", unpin)
    for model in MODELS:
        edit(repository, model, lambda config: config.ClearField("version_policy"))
    edit(repository, "e_mean", lambda config: config.version_policy.specific.versions.append(1))
    write_version(repository, describe(), NEW, {})
    assert {step.model_version for step in read(repository, "e").ensemble_scheduling.step} == {2}
    assert [read(repository, model).version_policy.latest.num_versions for model in MODELS] == [2, 2, 0]
    assert read(repository, "e_mean").version_policy.specific.versions == [1, 2]


def test_after_a_rollback_the_old_version_is_served_until_a_new_one_runs(
    repository: Path, describe: Describe
) -> None:
    write_version(repository, describe(), NEW, {})
    shutil.rmtree(repository / "e/2")
    (repository / "e/1/config.pbtxt").rename(repository / "e/config.pbtxt")
    assert write_version(repository, describe(), NEW, {}) == 3
    kept = [read(repository, model).version_policy.latest.num_versions for model in MODELS]
    assert kept == [3, 3, 3], "the running version 1, and 2 and 3"


def test_steps_never_name_a_version_before_it_exists(
    repository: Path, describe: Describe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every rename, all steps name the same version, and its files exist."""

    def unpin(config: ModelConfig) -> None:
        for step in config.ensemble_scheduling.step:
            step.model_version = -1

    edit(repository, "e", unpin)
    rename = Path.rename
    seen = []

    def watched(source: Path, target: Path) -> Path:
        renamed = rename(source, target)
        if source.name == "probe":
            return renamed
        steps = read(repository, "e").ensemble_scheduling.step
        assert all((repository / s.model_name / str(s.model_version) / "model.onnx").is_file() for s in steps)
        (version,) = {step.model_version for step in steps}
        seen.append(version)
        return renamed

    monkeypatch.setattr(Path, "rename", watched)
    write_version(repository, describe(), NEW, {})
    assert seen == [1] * (len(seen) - 1) + [2]


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_version(
    repository: Path,
    describe: Describe,
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    error: BaseException,
) -> None:
    before = tree(repository)
    rename = Path.rename
    calls = iter(range(100))

    def failing(source: Path, target: Path) -> Path:
        if next(calls) == at:
            raise error
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(RepositoryError if isinstance(error, OSError) else KeyboardInterrupt):
        write_version(repository, describe(), NEW, {})
    assert tree(repository) == before
    assert list(repository.parent.iterdir()) == [repository]


@pytest.mark.parametrize(
    ("changes", "members", "message"),
    [
        ({"labels": ["cat", "frog", "dog", "ship", "plane"]}, NEW, "it has different labels"),
        ({"num_members": 3}, [*NEW, Member(b"")], "it has 2 members, not 3"),
        ({}, [Member(b""), Member(b"", input="pixels")], "the input of e_member1 differs"),
        ({}, [Member(b"", output="scores"), Member(b"")], "the output of e_member0 differs"),
        ({"name": "other"}, NEW, "there is no .*other/config.pbtxt to add a version to"),
    ],
)
def test_mismatches_with_the_ensemble_are_refused(
    repository: Path,
    describe: Describe,
    tree: Tree,
    changes: dict[str, object],
    members: list[Member],
    message: str,
) -> None:
    before = tree(repository)
    with pytest.raises(RepositoryError, match=message):
        write_version(repository, describe(**changes), members, {})
    assert tree(repository) == before


def test_different_preprocessing_is_refused(repository: Path, describe: Describe) -> None:
    description = describe()
    other = replace(description, preprocessing=replace(description.preprocessing, mean=[0.1, 0.2, 0.3]))
    with pytest.raises(RepositoryError, match="it has different preprocessing"):
        write_version(repository, other, NEW, {})


def test_a_broken_configuration_is_reported(repository: Path, describe: Describe) -> None:
    (repository / "e_member0/config.pbtxt").write_text("max_batch_size: many")
    with pytest.raises(RepositoryError, match=r"e_member0/config\.pbtxt cannot be read"):
        write_version(repository, describe(), NEW, {})


def test_links_and_files_named_like_versions_take_their_number(repository: Path, describe: Describe) -> None:
    (repository / "e" / "3").symlink_to("nowhere")
    (repository / "e_mean" / "4").write_text("a file")
    assert write_version(repository, describe(), NEW, {}) == 5
    assert json.loads(read(repository, "e").parameters["provenance"].string_value) == {}
    old = text_format.Parse((repository / "e/1/config.pbtxt").read_text(), ModelConfig())
    assert {step.model_version for step in old.ensemble_scheduling.step} == {1}


def run_newest(config: ModelConfig) -> None:
    for step in config.ensemble_scheduling.step:
        step.model_version = -1


def test_a_model_without_any_version_is_one_error(repository: Path, describe: Describe, tree: Tree) -> None:
    shutil.rmtree(repository / "e_member1" / "1")
    edit(repository, "e", run_newest)
    before = tree(repository)
    with pytest.raises(RepositoryError, match="e_member1 has no version that its version_policy serves"):
        write_version(repository, describe(), NEW, {})
    assert tree(repository) == before


def test_a_model_whose_folder_is_a_dangling_link_is_one_error(repository: Path, describe: Describe) -> None:
    shutil.rmtree(repository / "e_member1")
    (repository / "e_member1").symlink_to("nowhere")
    with pytest.raises(RepositoryError, match=r"there is no .*e_member1/config.pbtxt to add a version to"):
        write_version(repository, describe(), NEW, {})
