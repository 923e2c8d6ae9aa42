"""The co-training objective (arXiv 2011.14660, section III-C)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

MINIMUM_WEIGHT = 0.005


def jensen_shannon(logits: Tensor) -> Tensor:
    """Return the generalised Jensen-Shannon divergence of S predictions: H(mean of p_i) − mean of H(p_i).

    It is computed in float32 from log-softmax, so that neither bf16 nor a probability of 0 gives NaN.

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


def mutual_kullback_leibler(logits: Tensor) -> Tensor:
    """Return the sum over members of the mean KL divergence from every other member's prediction.

    The other member's prediction is a fixed target without gradient (deep mutual learning, arXiv 1706.00384;
    the paper's alternative term).

    Args:
        logits: `[S, N, C]`, any floating dtype; S at least 2.

    Returns:
        Scalar float32, in nats, averaged over the batch.
    """
    log_p = F.log_softmax(logits.float(), dim=-1)
    target = log_p.detach()
    entropy = (target.exp() * target).sum(-1)
    cross = torch.einsum("inc,jnc->ijn", target.exp(), log_p)
    pairs = entropy[:, None] - cross
    # Leave the diagonal out: its value is 0, but its gradient would be 0 only by cancellation.
    others = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    return pairs[others].sum(0).mean() / (len(logits) - 1)


TERMS = {"js": jensen_shannon, "kl": mutual_kullback_leibler}


def co_training_loss(
    logits: Tensor,
    targets: Tensor,
    weight: float,
    term: Literal["js", "kl"] = "js",
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Return the sum of the members' cross-entropies plus `weight` × the co-training term.

    Args:
        logits: `[S, N, C]`; for S = 1 there is no co-training term.
        targets: classes `[N]`, int64, or class probabilities `[N, C]`.
        weight: weight of the co-training term, not negative.
        term: "js", the Jensen-Shannon divergence, or "kl", the mutual Kullback-Leibler divergence.
        label_smoothing: probability spread evenly over all classes.
        class_weights: factor of the cross-entropy of each class's images, `[C]`.

    Returns:
        Scalar float32.
    """
    members, batch, classes = logits.shape
    if class_weights is not None:
        targets = _weigh(targets, class_weights, label_smoothing)
        label_smoothing = 0.0
    cross_entropy = F.cross_entropy(
        logits.float().reshape(members * batch, classes),
        targets.repeat(members, *[1] * (targets.ndim - 1)),
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    loss = cross_entropy / batch
    return loss if members == 1 else loss + weight * TERMS[term](logits)


def _weigh(targets: Tensor, class_weights: Tensor, label_smoothing: float) -> Tensor:
    """Return smoothed class probabilities `[N, C]`, multiplied by the weights of the images' own classes.

    Torch's own weights also multiply what smoothing gives to other classes. If one of them is rare, that can
    exceed what the image's own class gets.
    """
    classes = len(class_weights)
    own = targets if targets.ndim > 1 else F.one_hot(targets, classes)
    weighted = own * class_weights
    return (1 - label_smoothing) * weighted + label_smoothing / classes * weighted.sum(-1, keepdim=True)


def warm_up_weight(weight: float, epoch: float, warmup_epochs: float) -> float:
    """Return the co-training term's weight at a fractional `epoch`.

    It rises linearly to `weight`, and is never below 0.005, or `weight` if that is smaller.
    """
    ramp = 1.0 if warmup_epochs <= 0 else min(1.0, epoch / warmup_epochs)
    return max(weight * ramp, min(weight, MINIMUM_WEIGHT))
