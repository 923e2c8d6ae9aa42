"""RMSprop by TensorFlow's rules, which EfficientNet's learning rates are meant for (arXiv 1905.11946)."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class RMSprop(Optimizer):
    """RMSprop with momentum; see `torch.optim.RMSprop`, which differs in three ways.

    The average of squared gradients starts at 1 instead of 0, which keeps the first updates small. `eps` is
    added to the average instead of to its root. Momentum accumulates updates, not gradients: a change of the
    learning rate does not act on earlier ones.

    Args:
        groups: parameter groups.
        lr: learning rate.
        alpha: decay of the average of squared gradients.
        eps: added to that average.
        momentum: decay of the accumulated updates.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, *, alpha: float, eps: float, momentum: float
    ) -> None:
        super().__init__(
            groups, {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum, "weight_decay": 0.0}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["square_avg"] = torch.ones_like(parameter)
            state["momentum_buffer"] = torch.zeros_like(parameter)
        gradient = parameter.grad.add(parameter, alpha=group["weight_decay"])  # type: ignore[union-attr]
        square = state["square_avg"]
        square.lerp_(gradient.square(), 1 - group["alpha"])
        update = state["momentum_buffer"]
        update.mul_(group["momentum"]).addcdiv_(gradient, (square + group["eps"]).sqrt_(), value=group["lr"])
        parameter.sub_(update)
