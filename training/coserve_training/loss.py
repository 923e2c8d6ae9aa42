"""The co-training objective (arXiv 2011.14660, section III-C)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MINIMUM_WEIGHT = 0.005


def jensen_shannon(logits: Tensor) -> Tensor:
    """Generalised Jensen-Shannon divergence of S predictions: H(mean of p_i) − mean of H(p_i).

    Computed in float32 from log-softmax, so that neither bf16 nor a probability of zero gives a NaN.

    Args:
        logits: `[S, N, C]`, any floating dtype.

    Returns:
        Scalar float32, in nats, averaged over the batch; between 0 and log S.
    """
    log_p = F.log_softmax(logits.float(), dim=-1)
    log_mean = torch.logsumexp(log_p, dim=0) - math.log(len(logits))
    entropy_of_mean = -(log_mean.exp() * log_mean).sum(-1)
    mean_of_entropies = -(log_p.exp() * log_p).sum(-1).mean(0)
    return (entropy_of_mean - mean_of_entropies).mean()


def co_training_loss(logits: Tensor, targets: Tensor, weight: float) -> Tensor:
    """Sum of the members' cross-entropies plus `weight` × Jensen-Shannon divergence.

    Args:
        logits: `[S, N, C]`; the divergence is left out for S = 1.
        targets: `[N]` int64 classes.
        weight: of the divergence, not negative.

    Returns:
        Scalar float32.
    """
    members, batch, classes = logits.shape
    cross_entropy = F.cross_entropy(
        logits.float().reshape(members * batch, classes), targets.repeat(members), reduction="sum"
    )
    loss = cross_entropy / batch
    return loss if members == 1 else loss + weight * jensen_shannon(logits)


def warmed_up(weight: float, epoch: float, warmup_epochs: float) -> float:
    """The divergence's weight at `epoch`: linear up to `weight`, never under 0.005 (or `weight`, if less)."""
    ramp = 1.0 if warmup_epochs <= 0 else min(1.0, epoch / warmup_epochs)
    return max(weight * ramp, min(weight, MINIMUM_WEIGHT))
