"""Times steps of co-training on random images: bf16, the paper's loss, stochastic gradient descent."""

import time
from typing import Any

import torch

from coserve_training.loss import co_training_loss
from coserve_training.networks import member_network

CLASSES = 10
IMAGE_SIZE = 32
DISCARDED = 5


def time_steps(
    network: str, split: int, batch_size: int, device: torch.device, deadline: float
) -> dict[str, Any]:
    """Return the training throughput of the members, one step after another.

    Args:
        deadline: when to stop, of `time.monotonic`.
    """
    torch.manual_seed(0)
    on_gpu = device.type == "cuda"
    config = member_network(network, split, image_size=IMAGE_SIZE)
    members = [config.build(CLASSES).to(device) for _ in range(split)]
    for member in members:
        # PyTorch's types lack this keyword.
        member.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = [parameter for member in members for parameter in member.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    views = torch.randn(split, batch_size, 3, IMAGE_SIZE, IMAGE_SIZE, device=device)
    views = views.to(torch.bfloat16)
    targets = torch.randint(CLASSES, (batch_size,), device=device)
    seconds: list[float] = []
    while len(seconds) <= DISCARDED or (time.monotonic() < deadline and len(seconds) < 200):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16):
            logits = torch.stack([member(view) for member, view in zip(members, views, strict=True)])
        loss = co_training_loss(logits, targets, 0.5)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        # Reading the loss waits for the step.
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss.item()}")
        seconds.append(time.perf_counter() - start)
    kept = sorted(seconds[DISCARDED:])
    step = kept[len(kept) // 2]
    return {
        "network": network,
        "split": split,
        "members": str(config),
        "batch_size": batch_size,
        "steps": len(kept),
        "step_ms": step * 1e3,
        "images_per_s": batch_size / step,
        "memory_gib": torch.cuda.max_memory_allocated(device) / 2**30 if on_gpu else None,
    }
