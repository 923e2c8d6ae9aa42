"""Batch norm with statistics shared among processes on CPUs; torch's own needs GPUs."""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.layer_sync import LayerSync
from torch import Tensor, nn


class _Sum(torch.autograd.Function):
    """Sums over all processes: values in the forward pass, gradients in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with statistics over the batches of all processes, which must be equally large."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `[N, C, H, W]` to the same shape."""
        if not (self.training and dist.is_initialized()):
            return super().forward(x)
        processes = dist.get_world_size()
        values = x if x.dtype == torch.float64 else x.float()
        mean = _Sum.apply(values.mean((0, 2, 3))) / processes  # type: ignore[no-untyped-call]
        # Two passes, because rounding in E[x²] − E[x]² exceeds the variance if the mean is much larger.
        centred = values - mean[:, None, None]
        variance = _Sum.apply(centred.square().mean((0, 2, 3))) / processes  # type: ignore[no-untyped-call]
        self._update_running(mean.detach(), variance.detach(), processes * x.numel() // x.shape[1])
        scale = self.weight / (variance + self.eps).sqrt()
        normalised: Tensor = centred * scale[:, None, None] + self.bias[:, None, None]
        return normalised.to(x.dtype)

    def _update_running(self, mean: Tensor, variance: Tensor, count: int) -> None:
        momentum = self.momentum
        assert momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / max(1, count - 1)), momentum)


class SharedBatchNorm(LayerSync):
    """Turns a network's batch norms into shared ones for training."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Change the class of every batch norm, in place: parameters and buffers stay the same objects."""
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = SharedBatchNorm2d
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Change every shared batch norm back."""
        for module in model.modules():
            if type(module) is SharedBatchNorm2d:
                module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
        return model
