"""Shared batch norm, compared with torch's own in float64 on the whole batch."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from coserve_training.distributed.batch_norm_sync import SharedBatchNorm

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""Largest difference from float64 of normalised values, by the input's type."""


@contextmanager
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def norms(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """Make a shared batch norm of three channels, and torch's own in float64, with the same parameters."""
    own = nn.BatchNorm2d(3).double()
    with torch.no_grad():
        own.weight.copy_(torch.tensor([1.0, 0.5, -2.0]))
        own.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    shared = nn.BatchNorm2d(3).to(torch.float64 if dtype == torch.float64 else torch.float32)
    shared.load_state_dict(own.state_dict())
    return SharedBatchNorm().apply(shared), own


@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(sorted(TOLERANCES, key=str)),
    mean=st.sampled_from([0.0, 1.0, -30.0, 300.0, 3e4]),
    spread=st.sampled_from([0.0, 1e-3, 0.1, 1.0, 30.0]),
    seed=st.integers(0, 2**16),
)
def test_one_process_normalises_as_torch_does_in_float64(
    dtype: torch.dtype, mean: float, spread: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(6, 3, 5, 5, generator=generator, dtype=torch.float64)
    images = (mean + spread * noise).to(dtype)  # what both see is rounded already
    shared, own = norms(dtype)
    with one_process():
        outputs = shared(images), own(images.double())
    assert outputs[0].dtype == dtype
    scale = outputs[1].detach().abs().max().clamp(min=1)
    # The mean is rounded, to float32 unless the input is float64. Divided by the deviation, that can be much.
    unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    rounding = abs(mean) * unit / (images.double().std() + 3e-3)
    limit = float(TOLERANCES[dtype] * scale + 8 * rounding)
    torch.testing.assert_close(outputs[0].double(), outputs[1], rtol=0, atol=limit)
    for name in ("running_mean", "running_var"):
        got = getattr(shared, name).double()
        wanted = getattr(own, name)
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6 + abs(mean) * 2**-23)
    assert (shared.running_var >= 0).all()


@pytest.mark.parametrize("mean", [300.0, 1000.0, 3000.0])
def test_a_large_mean_leaves_the_variance_of_a_small_spread(mean: float) -> None:
    """E[x²] − E[x]² would be rounding alone, or negative."""
    torch.manual_seed(0)
    images = mean + 0.05 * torch.randn(64, 3, 8, 8)
    shared, own = norms()
    with one_process():
        normalised = shared(images)
    torch.testing.assert_close(normalised.double(), own(images.double()), rtol=0, atol=0.02)


def test_gradients_are_those_of_torch() -> None:
    torch.manual_seed(0)
    images = torch.randn(6, 3, 5, 5, dtype=torch.float64) * 2 + 1
    pair = norms(torch.float64)
    inputs = [images.clone().requires_grad_() for _ in pair]
    with one_process():
        for norm, x in zip(pair, inputs, strict=True):
            (norm(x) * images.square()).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    for shared, own in zip(pair[0].parameters(), pair[1].parameters(), strict=True):
        torch.testing.assert_close(shared.grad, own.grad)


def whole_batch() -> Tensor:
    noise = torch.randn(8, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return noise * torch.tensor([1.0, 0.01, 5.0]).view(3, 1, 1) + torch.tensor([0.0, 40.0, -3]).view(3, 1, 1)


def normalise_a_half(rank: int, store: Path, results: "SimpleQueue[object]") -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    shared, _ = norms(torch.float64)
    images = whole_batch().chunk(2)[rank].clone().requires_grad_()
    output = shared(images)
    (output * images.detach().square()).sum().backward()
    results.put((rank, output.detach().numpy(), images.grad.numpy(), shared.running_var.numpy()))  # type: ignore[union-attr, operator]
    dist.destroy_process_group()


def test_two_processes_normalise_their_halves_as_one_does_the_whole(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results: SimpleQueue[object] = context.SimpleQueue()
    processes = [
        context.Process(target=normalise_a_half, args=(rank, tmp_path / "store", results))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    halves = sorted((results.get() for _ in processes), key=lambda half: half[0])  # type: ignore[index]
    _, own = norms()
    images = whole_batch().requires_grad_()
    output = own(images)
    (output * images.detach().square()).sum().backward()
    for index, wanted in ((1, output.detach()), (2, images.grad)):
        got = torch.cat([torch.from_numpy(half[index]) for half in halves])  # type: ignore[index]
        torch.testing.assert_close(got, wanted)
    for half in halves:
        torch.testing.assert_close(torch.from_numpy(half[3]), own.running_var)  # type: ignore[index]
