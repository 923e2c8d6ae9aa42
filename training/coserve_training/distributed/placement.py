"""One member per process, each on a device of its own. The processes exchange only logits.

Every process sees the same batches and computes the whole loss, with the other members' logits as constants.
The gradient for its own member is then the same as in one process that holds all members.
"""

from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

State = dict[str, Any]

WEIGHTS = ("state_dict", "current_model_state")
"""A checkpoint's entries with weights by name. The second one exists beside an average of the weights."""


def gather_logits(logits: Tensor) -> Tensor:
    """Join this process's logits `[1, N, C]` with the others', as constants, to `[S, N, C]` float32."""
    logits = logits.float().contiguous()
    gathered = [torch.empty_like(logits) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, logits.detach())
    gathered[dist.get_rank()] = logits
    return torch.cat(gathered)


class MemberPerProcess(DDPStrategy):
    """Trains one member in each process, without exchanging gradients.

    Checkpoints have the form that one process with all members writes: the first process gathers the others'
    parts before it writes, and each process picks its own part when it reads.
    """

    def setup_distributed(self) -> None:
        """Connect the processes."""
        super().setup_distributed()
        # NCCL would gather checkpoints on the first GPU, which may not have room for all members.
        self.in_host_memory = dist.new_group(backend="gloo")

    def configure_ddp(self) -> None:
        """Leave the module as it is. DDP's wrapper would give all members the same weights."""

    def save_checkpoint(self, checkpoint: State, filepath: _PATH, storage_options: Any = None) -> None:
        """Write a checkpoint of all members, from the first process."""
        own = {key: checkpoint[key] for key in (*WEIGHTS, "optimizer_states") if key in checkpoint}
        parts: list[Any] | None = [None] * self.world_size if self.is_global_zero else None
        dist.gather_object(move_data_to_device(own, torch.device("cpu")), parts, group=self.in_host_memory)
        if parts is not None:
            super().save_checkpoint(checkpoint | join_states(parts), filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> State:
        """Read this process's part of a checkpoint."""
        checkpoint = super().load_checkpoint(checkpoint_path, weights_only)
        return checkpoint | take_state(checkpoint, self.global_rank, self.world_size)


def join_states(parts: list[State]) -> State:
    """Join the weights and optimizer states of single members, in the members' order."""
    whole: State = {
        key: {name: value for part in parts for name, value in part[key].items()}
        for key in WEIGHTS
        if key in parts[0]
    }
    states = [optimizer for part in parts for optimizer in part["optimizer_states"]]
    groups = states[0]["param_groups"]
    sizes = [len(group["params"]) for group in groups]
    moved = {
        position: state["state"][index]
        for member, state in enumerate(states)
        for index, position in enumerate(_positions(sizes, member, len(states)))
        if index in state["state"]
    }
    whole_groups = _renumber(groups, [size * len(states) for size in sizes])
    optimizer = {"state": dict(sorted(moved.items())), "param_groups": whole_groups}
    return whole | {"optimizer_states": [optimizer]}


def take_state(whole: State, member: int, members: int) -> State:
    """Take one member's weights and optimizer state out of all members'; the inverse of `join_states`."""
    own: State = {
        key: {name: value for name, value in whole[key].items() if name.startswith(f"members.{member}.")}
        for key in WEIGHTS
        if key in whole
    }
    (state,) = whole["optimizer_states"]
    groups = state["param_groups"]
    sizes = [len(group["params"]) // members for group in groups]
    moved = {
        index: state["state"][position]
        for index, position in enumerate(_positions(sizes, member, members))
        if position in state["state"]
    }
    return own | {"optimizer_states": [{"state": moved, "param_groups": _renumber(groups, sizes)}]}


def _positions(sizes: list[int], member: int, members: int) -> list[int]:
    """Return the positions of one member's parameters among all members', by their index within the member.

    Args:
        sizes: parameters per member in each of the optimizer's groups. Each group holds one member after
            the other.
        member: the member.
        members: S.
    """
    positions: list[int] = []
    first = 0
    for size in sizes:
        positions += range(first + member * size, first + (member + 1) * size)
        first += members * size
    return positions


def _renumber(groups: list[State], sizes: list[int]) -> list[State]:
    """Return the groups with consecutive parameters, as many as `sizes` says."""
    numbers = iter(range(sum(sizes)))
    return [
        group | {"params": list(islice(numbers, size))} for group, size in zip(groups, sizes, strict=True)
    ]
