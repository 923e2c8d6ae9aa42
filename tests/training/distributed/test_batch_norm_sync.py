from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from coserve_training.distributed.batch_norm_sync import SharedBatchNorm


@pytest.fixture(autouse=True)
def _one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_one_process_normalises_as_torch_does() -> None:
    torch.manual_seed(0)
    images = torch.randn(6, 3, 5, 5) * 2 + 1
    norms = [nn.BatchNorm2d(3), SharedBatchNorm().apply(nn.BatchNorm2d(3))]
    inputs = [images.clone().requires_grad_() for _ in norms]
    outputs = [norm(x) for norm, x in zip(norms, inputs, strict=True)]
    for output in outputs:
        (output * images.square()).sum().backward()
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=1e-3, atol=1e-4)
    for name, value in norms[0].state_dict().items():
        torch.testing.assert_close(norms[1].state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_a_channel_with_a_large_mean_and_little_spread_stays_finite() -> None:
    """In such a channel, rounding can make E[x²] − E[x]² negative."""
    torch.manual_seed(0)
    norm = SharedBatchNorm().apply(nn.BatchNorm2d(1))
    for mean in (300.0, 1000.0, 3000.0):
        images = (mean + 1e-3 * torch.randn(64, 1, 8, 8)).requires_grad_()
        normalised = norm(images)
        normalised.sum().backward()
        assert normalised.isfinite().all()
        assert images.grad is not None
        assert images.grad.isfinite().all()
        assert norm.running_var >= 0
