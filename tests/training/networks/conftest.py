from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coserve_export.onnx_export import export_network
from coserve_training.networks.efficientnet import CHANNELS_BY_SPLIT, STAGES


def randomise(network: nn.Module, images: Tensor) -> None:
    """Make weights and batch-norm statistics as different from fresh ones as training could.

    Statistics stay near those of `images`, as after training, and classifiers keep logits near 1. Rounding
    errors grow with the sums, so that absolute differences would mean little otherwise.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
        norm.momentum = 1.0
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        network.train()(images)
    for norm in norms:
        norm.running_mean += 0.2 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.5, 2)


@pytest.fixture(scope="session")
def makes_logits() -> Callable[..., None]:
    """Return a check that images of `size` pixels become finite logits of seven classes."""

    def check(network: nn.Module, size: int) -> None:
        with torch.inference_mode():
            logits = network.eval()(torch.randn(2, 3, size, size))
        assert logits.shape == (2, 7)
        assert torch.isfinite(logits).all()

    return check


@pytest.fixture(scope="session")
def onnx_difference() -> Callable[..., float]:
    """Return a function for the largest difference of a random network's logits in torch and ONNX Runtime."""

    def difference(network: nn.Module, size: int, batch: int = 3) -> float:
        torch.manual_seed(0)
        images = torch.randn(batch, 3, size, size)
        randomise(network, images)
        model = export_network(network, (size, size)).SerializeToString()
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        (served,) = session.run(None, {"images": images.numpy()})
        with torch.inference_mode():
            expected = network.eval()(images).numpy()
        assert 0.1 < np.abs(expected).max() < 100
        assert np.ptp(expected, axis=0).max() > 1e-2, "the logits do not depend on the image"
        return float(np.abs(served - expected).max())

    return difference


@pytest.fixture(scope="session")
def train_a_step() -> Callable[..., None]:
    """Return a check that a step of SGD in bf16 changes every parameter and leaves all of them finite."""

    def step(network: nn.Module, size: int = 16) -> None:
        torch.manual_seed(0)
        nn.init.normal_(next(m for m in network.modules() if isinstance(m, nn.Linear)).weight)
        optimizer = torch.optim.SGD(network.train().parameters(), 0.1, momentum=0.9, nesterov=True)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(torch.randn(8, 3, size, size))
            loss = F.cross_entropy(logits, torch.arange(8) % logits.shape[1])
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
            assert torch.isfinite(parameter).all(), name

    return step


@pytest.fixture
def shallow_efficientnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep five blocks: with and without widening, shortcut and stride, and with both kernel sizes."""
    module = "coserve_training.networks.efficientnet"
    stages = tuple(stage._replace(blocks=n) for stage, n in zip(STAGES, (1, 2, 1, 1), strict=False))
    channels = {s: table._replace(stages=table.stages[:4]) for s, table in CHANNELS_BY_SPLIT.items()}
    monkeypatch.setattr(f"{module}.STAGES", stages)
    monkeypatch.setattr(f"{module}.CHANNELS_BY_SPLIT", channels)
