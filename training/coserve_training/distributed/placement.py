"""Members placed one per process, each on a device of its own, with only logits sent between them.

Every process goes through the same batches and computes the whole loss, in which the logits of the others are
constants: its gradient for the process's own member is then that of one process that holds all.
"""

from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

State = dict[str, Any]

WEIGHTS = ("state_dict", "current_model_state")
"""Weights by name in a checkpoint; the latter beside an average of them."""


def everyones(logits: Tensor) -> Tensor:
    """This process's logits `[1, N, C]` and the others', as constants, to `[S, N, C]` float32."""
    logits = logits.float().contiguous()
    gathered = [torch.empty_like(logits) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, logits.detach())
    gathered[dist.get_rank()] = logits
    return torch.cat(gathered)


class MemberPerProcess(DDPStrategy):
    """Processes that train a member each; no gradients are exchanged.

    Checkpoints are those of one process that trains all members: the first process gathers the others' parts
    to write one, and each takes its own part of one that is read.
    """

    def setup_distributed(self) -> None:
        """Connect the processes."""
        super().setup_distributed()
        # NCCL would gather checkpoints on the first GPU, which need not have room for all members.
        self.in_host_memory = dist.new_group(backend="gloo")

    def configure_ddp(self) -> None:
        """Leave the module as it is: DDP's wrapper would make the members' weights the same."""

    def save_checkpoint(self, checkpoint: State, filepath: _PATH, storage_options: Any = None) -> None:
        """Write one checkpoint of all members, in the first process."""
        own = {key: checkpoint[key] for key in (*WEIGHTS, "optimizer_states") if key in checkpoint}
        parts: list[Any] | None = [None] * self.world_size if self.is_global_zero else None
        dist.gather_object(move_data_to_device(own, torch.device("cpu")), parts, group=self.in_host_memory)
        if parts is not None:
            super().save_checkpoint(checkpoint | joined(parts), filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> State:
        """Read this process's part of a checkpoint."""
        checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        return checkpoint | part(checkpoint, self.global_rank, self.world_size)


def joined(parts: list[State]) -> State:
    """Weights and optimizer states of all members, from those of each, in their order."""
    whole: State = {
        key: {name: value for part in parts for name, value in part[key].items()}
        for key in WEIGHTS
        if key in parts[0]
    }
    states = [optimizer for part in parts for optimizer in part["optimizer_states"]]
    (group,) = states[0]["param_groups"]
    size = len(group["params"])
    optimizer = {
        "state": {
            member * size + index: value
            for member, state in enumerate(states)
            for index, value in state["state"].items()
        },
        "param_groups": [group | {"params": list(range(size * len(states)))}],
    }
    return whole | {"optimizer_states": [optimizer]}


def part(whole: State, member: int, members: int) -> State:
    """One member's weights and optimizer state, from those of all `members`; the inverse of `joined`."""
    own: State = {
        key: {name: value for name, value in whole[key].items() if name.startswith(f"members.{member}.")}
        for key in WEIGHTS
        if key in whole
    }
    (state,) = whole["optimizer_states"]
    (group,) = state["param_groups"]
    size = len(group["params"]) // members
    first = member * size
    optimizer = {
        "state": {
            index - first: value for index, value in state["state"].items() if first <= index < first + size
        },
        "param_groups": [group | {"params": list(range(size))}],
    }
    return own | {"optimizer_states": [optimizer]}
