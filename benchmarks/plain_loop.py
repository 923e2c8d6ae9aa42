"""Co-training as a plain loop, which shares nothing with Coserve but the networks that it is given.

tests/benchmarks/test_plain_loop.py holds `train` against it, and so does benchmarks/compare_plain_loop.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def plain_loop(
    members: list[nn.Module],
    pixels: Tensor,
    classes: Tensor,
    epochs: list[list[Tensor]],
    how: dict[str, float],
) -> list[list[float]]:
    """Train `members` in place, and return the losses. `epochs` holds the indices of each batch's images."""
    mean = pixels.mean((0, 2, 3), keepdim=True).round(decimals=4)
    std = pixels.std((0, 2, 3), correction=0, keepdim=True).round(decimals=4)
    named = [pair for member in members for pair in member.named_parameters()]
    decayed = {"params": [p for name, p in named if not name.endswith("bias")], "weight_decay": how["decay"]}
    others = {"params": [p for name, p in named if name.endswith("bias")]}
    optimizer = torch.optim.SGD([decayed, others], how["rate"], momentum=0.9, nesterov=True)
    losses: list[list[float]] = []
    for number, batches in enumerate(epochs):
        losses.append([])
        for index, batch in enumerate(batches):
            epoch = number + index / len(batches)
            cross_entropy = torch.tensor(0.0)
            probabilities = []
            for member in members:
                seen = move(pixels[batch]) if how["views"] else pixels[batch]
                logits = member.train()((seen - mean) / std)
                cross_entropy = cross_entropy + F.cross_entropy(logits, classes[batch])
                probabilities.append(logits.softmax(1))
            alone = torch.stack([entropy(p) for p in probabilities]).mean()
            divergence = entropy(torch.stack(probabilities).mean(0)) - alone
            loss = cross_entropy + max(0.005, how["weight"] * min(1, epoch / how["ramp"])) * divergence
            done = (epoch - how["warmup"]) / (len(epochs) - how["warmup"])
            cosine = 1e-4 + (how["rate"] - 1e-4) * (1 + math.cos(math.pi * done)) / 2
            for group in optimizer.param_groups:
                warm = how["rate"] * (epoch + 1 / len(batches)) / how["warmup"]
                group["lr"] = warm if done < 0 else cosine
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    return losses


def entropy(probabilities: Tensor) -> Tensor:
    """Return the mean entropy of predictions `[N, C]`."""
    return -(probabilities * probabilities.log()).sum(1).mean()


def move(images: Tensor) -> Tensor:
    """Shift each image by up to an eighth of its side, and flip half of them."""
    moved = []
    shift = images.shape[2] // 8
    for image in F.pad(images, (shift, shift, shift, shift)):
        top, left = torch.randint(2 * shift + 1, (2,)).tolist()
        cut = image[:, top : top + images.shape[2], left : left + images.shape[3]]
        moved.append(cut.flip(2) if torch.rand(()) < 0.5 else cut)
    return torch.stack(moved)
