"""Variables of launchers count only if a launcher started this process."""

import os

import pytest
from lightning.fabric.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)

from coserve_training.distributed.launch import PARENT, find_launcher
from coserve_training.errors import ConfigError

SBATCH = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
SRUN = SBATCH | {"SLURM_NODEID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in (*TORCHRUN, "NODE_RANK", "MASTER_PORT", PARENT):
            monkeypatch.delenv(name)
    monkeypatch.setenv(PARENT, "0")


@pytest.mark.parametrize("variables", [
    {}, {"SLURM_NTASKS": "2"}, SBATCH, {"SLURM_NTASKS": "many"}, {"WORLD_SIZE": "4", "RANK": "3"},
    {"LOCAL_RANK": "3"}, {"LOCAL_RANK": "x", "NODE_RANK": "y"}, {"MASTER_PORT": "x"},
])  # fmt: skip
def test_one_process_runs_alone_whatever_is_left_over(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    launcher = find_launcher(1, 1)
    assert isinstance(launcher, LightningEnvironment)
    assert (launcher.creates_processes_externally, launcher.local_rank(), launcher.node_rank()) == (
        False,
        0,
        0,
    )


@pytest.mark.parametrize(("variables", "kind"), [
    ({}, LightningEnvironment), (SBATCH, LightningEnvironment), ({"WORLD_SIZE": "9"}, LightningEnvironment),
    (SRUN, SLURMEnvironment), (TORCHRUN, TorchElasticEnvironment),
    ({**SRUN, **TORCHRUN}, TorchElasticEnvironment),
])  # fmt: skip
def test_two_processes(variables: dict[str, str], kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert type(find_launcher(2, 1)) is kind


@pytest.mark.parametrize(("variables", "devices", "message"), [
    (SRUN, 1, r"^srun started 2 processes \(SLURM_STEP_NUM_TASKS\), but --devices × --nodes is 1; "),
    (SRUN, 4, "^srun started 2 processes"),
    (SRUN | {"SLURM_PROCID": "x"}, 2, "^the environment's SLURM_PROCID is 'x', not a number"),
    (TORCHRUN, 1, r"^torchrun started 2 processes \(WORLD_SIZE\)"),
    (TORCHRUN | {"RANK": ""}, 2, "^the environment's RANK is '', not a number"),
    ({"LOCAL_RANK": "1"}, 2, "^LOCAL_RANK is 1, but neither torchrun nor srun started this process"),
    ({"MASTER_PORT": "tcp://10.0.0.1:80"}, 2, "^the environment's MASTER_PORT is 'tcp://10.0.0.1:80'"),
])  # fmt: skip
def test_contradictions_are_one_line(
    variables: dict[str, str], devices: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        find_launcher(devices, 1)


def test_a_second_training_of_the_first_process_is_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning leaves its variables behind."""
    find_launcher(2, 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ConfigError, match=r"^this process has begun a training on several devices already"):
        find_launcher(2, 1)


def test_a_process_that_this_program_started_keeps_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PARENT, str(os.getppid()))
    monkeypatch.setenv("LOCAL_RANK", "1")
    launcher = find_launcher(2, 1)
    assert (launcher.creates_processes_externally, launcher.local_rank()) == (True, 1)
