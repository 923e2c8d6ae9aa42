"""How the processes of a run are started: by this program, by srun, or by torchrun.

Lightning trusts variables that other programs leave behind: in a Slurm job without srun it waits for
processes that nobody started. Here a launcher counts only if its variables say that it started this process.
"""

import os

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.lsf import LSFEnvironment
from lightning.fabric.plugins.environments.mpi import MPIEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from coserve_training.errors import ConfigError

PARENT = "_COSERVE_TRAIN_PARENT"
"""Holds the process that started this one, if `coserve train` did."""


class _Alone(LightningEnvironment):
    """A run of one process, whatever the environment says of others."""

    def __init__(self) -> None:
        super().__init__()
        self.set_global_rank(0)  # Lightning has taken it from RANK or SLURM_PROCID

    @property
    def creates_processes_externally(self) -> bool:
        return False

    def local_rank(self) -> int:
        return 0

    def node_rank(self) -> int:
        return 0


def find_launcher(devices: int, nodes: int) -> ClusterEnvironment:
    """Return how the processes of a run are started.

    Args:
        devices: processes per node.
        nodes: number of machines.

    Raises:
        ConfigError: if a launcher started another number of processes, or a variable is not a number.
    """
    processes = devices * nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _check_numbers("RANK", "LOCAL_RANK", "WORLD_SIZE")
        _check_count("torchrun", int(os.environ["WORLD_SIZE"]), "WORLD_SIZE", processes)
        return TorchElasticEnvironment() if processes > 1 else _Alone()
    # srun sets these for each process. sbatch and salloc set SLURM_NTASKS alone, and start one process.
    if "SLURM_STEP_NUM_TASKS" in os.environ and os.environ.get("SLURM_JOB_NAME") not in (
        "bash",
        "interactive",
    ):
        _check_numbers("SLURM_STEP_NUM_TASKS")
        _check_count("srun", int(os.environ["SLURM_STEP_NUM_TASKS"]), "SLURM_STEP_NUM_TASKS", processes)
        if processes > 1:
            _check_numbers("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")
            return SLURMEnvironment()
    if processes == 1:
        return _Alone()
    for environment in (LSFEnvironment, MPIEnvironment):
        if environment.detect():
            return environment()
    if os.environ.get(PARENT) != str(os.getppid()):
        if "LOCAL_RANK" in os.environ and os.environ.get(PARENT) == str(os.getpid()):
            raise ConfigError(
                "this process has begun a training on several devices already; begin the next in a new one"
            )
        if "LOCAL_RANK" in os.environ:
            raise ConfigError(
                f"LOCAL_RANK is {os.environ['LOCAL_RANK']}, but neither torchrun nor srun started this "
                "process; unset it"
            )
        _check_numbers(*(name for name in ("NODE_RANK", "GROUP_RANK", "MASTER_PORT") if name in os.environ))
        os.environ[PARENT] = str(os.getpid())
    return LightningEnvironment()


def _check_numbers(*names: str) -> None:
    for name in names:
        value = os.environ.get(name)
        if value is None or not value.isdecimal():
            shown = "missing" if value is None else f"{value!r}, not a number"
            raise ConfigError(
                f"the environment's {name} is {shown}; correct it, or unset its launcher's variables"
            )


def _check_count(launcher: str, started: int, name: str, processes: int) -> None:
    if started != processes:
        raise ConfigError(
            f"{launcher} started {started} processes ({name}), but --devices × --nodes is {processes}; "
            "make them equal, or unset the variables if they are left over"
        )
