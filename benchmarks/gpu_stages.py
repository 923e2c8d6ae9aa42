"""The stages of gpu.py: each yields rows, and imports what it needs when it runs."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

TRAINED_SPLIT = 2
TRAINING_IMAGES = 50_000
START_UP_S = 60
"""What `coserve train` takes beside its epochs: reading images, evaluation, checkpoints."""
CUT_OFF = "cut off at its deadline"

Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Plan:
    """What is measured on a device.

    Attributes:
        profiled: networks whose kernels are profiled, with the most and the fewest members.
        trained: network whose training is measured.
    """

    networks: tuple[str, ...]
    splits: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    profiled: tuple[str, ...]
    trained: str
    training_batch: int


PLANS = {
    "cuda": Plan(
        ("resnet164", "wide_resnet28_10", "resnext29_8x64d"),
        (1, 2, 4),
        (1, 8, 32, 128),
        ("resnet164", "wide_resnet28_10"),
        "wide_resnet28_10",
        128,
    ),
    "cpu": Plan(("wide_resnet10_1",), (1, 2), (1, 2), ("wide_resnet10_1",), "wide_resnet10_1", 8),
}


def missing(*modules: str) -> str | None:
    """Return which of the modules are not installed; None if all are."""
    absent = [name for name in modules if importlib.util.find_spec(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


def why_unusable(device: str) -> str | None:
    """Return why PyTorch cannot use the device; None if it can."""
    if reason := missing("torch"):
        return reason
    from coserve_bench.gpu import devices

    return devices.why_unusable(device)


def without_cuda(device: str) -> str | None:
    """Return why ONNX Runtime cannot run here; None if it can."""
    if reason := missing("onnxruntime", "onnx", "pydantic_settings", "tritonclient", "typer"):
        return reason
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    if device == "cuda" and "CUDAExecutionProvider" not in providers:
        return f"ONNX Runtime {onnxruntime.__version__} has no CUDA"
    return None


def coserve(*arguments: str) -> list[str]:
    """Return the command line of `coserve`, which may not be installed."""
    return [sys.executable, "-c", "from coserve_cli.main import app; app()", *arguments]


def call(command: list[str], deadline: float) -> dict[str, Any]:
    """Run a command until the deadline, and return its status and the end of what it printed.

    The status is `CUT_OFF` if the deadline ended it.
    """
    status: int | str
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=max(1, deadline - time.monotonic()),
            check=False,
        )
        status = done.returncode
        printed = done.stdout
    except subprocess.TimeoutExpired as late:
        status = CUT_OFF
        printed = late.stdout or b""
    return {"status": status, "printed": printed.decode("utf-8", "replace").splitlines()[-40:]}


def run_machine(plan: Plan, arguments: argparse.Namespace, deadline: float) -> Rows:
    """Describe the machine."""
    import torch

    from coserve_bench.gpu.devices import measure_launch, measure_peak, open_device

    device = open_device(arguments.device)
    yield {"torch": torch.__version__, "cores": os.cpu_count(), **device.describe()}
    yield {"launch_us": measure_launch(device)}
    yield {
        "peak_tflops": {precision: measure_peak(device, precision) for precision in ("fp32", "tf32", "fp16")}
    }


def run_speed(plan: Plan, arguments: argparse.Namespace, deadline: float) -> Rows:
    """Time the networks in fp32."""
    return time_networks(plan, ("fp32",), arguments, deadline)


def run_precisions(plan: Plan, arguments: argparse.Namespace, deadline: float) -> Rows:
    """Time the networks in lower precisions."""
    return time_networks(plan, ("fp16", "tf32"), arguments, deadline)


def time_networks(
    plan: Plan, precisions: tuple[str, ...], arguments: argparse.Namespace, deadline: float
) -> Rows:
    """Time the plan's networks in these precisions."""
    from coserve_bench.gpu.devices import open_device
    from coserve_bench.gpu.speed import measure

    device = open_device(arguments.device)
    for rows in measure(plan.networks, precisions, plan.splits, plan.batch_sizes, device, deadline):
        yield from rows


def run_kernels(plan: Plan, arguments: argparse.Namespace, deadline: float) -> Rows:
    """Profile the kernels of the most members, and of the undivided network."""
    from coserve_bench.gpu.devices import open_device
    from coserve_bench.gpu.kernels import profile_ways

    splits = (plan.splits[-1], plan.splits[0])
    return profile_ways(plan.profiled, splits, plan.batch_sizes[::2], open_device(arguments.device), deadline)


def run_onnxruntime(plan: Plan, arguments: argparse.Namespace, deadline: float) -> Rows:
    """Compare the networks in Coserve's engine."""
    if reason := without_cuda(arguments.device):
        yield {"skipped": reason}
        return
    on_gpu = ("--gpus", "0", "--cuda-graphs") if arguments.device == "cuda" else ()
    for index, network in enumerate(plan.networks):
        if time.monotonic() > deadline:
            return
        report = arguments.output / f"speedup_{network}.json"
        seconds = (deadline - time.monotonic()) / (len(plan.networks) - index) / 2 / len(plan.batch_sizes)
        options = {
            "--network": network,
            "--splits": ",".join(map(str, plan.splits)),
            "--batch-sizes": ",".join(map(str, plan.batch_sizes)),
            "--seconds": str(max(1, min(seconds, 10))),
            "--output": str(report),
        }
        words = [word for option in options.items() for word in option]
        yield {"network": network, **call(coserve("bench", "speedup", *words, *on_gpu), deadline)}


def run_tests(plan: Plan, arguments: argparse.Namespace, deadline: float) -> Rows:
    """Run the tests that use a GPU if there is one."""
    if reason := without_cuda(arguments.device) or missing("pytest"):
        yield {"skipped": reason}
        return
    tests = ("tests/server/engines/test_gpus.py", "tests/server/engines/test_gpu_start.py")
    yield call([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests], deadline)


def run_steps(plan: Plan, arguments: argparse.Namespace, deadline: float) -> Rows:
    """Time co-training, undivided and divided."""
    from coserve_bench.gpu.devices import open_device
    from coserve_bench.gpu.training import time_steps

    device = open_device(arguments.device).torch_device
    for index, split in enumerate(plan.splits):
        now = time.monotonic()
        end = now + (deadline - now) / (len(plan.splits) - index)
        yield time_steps(plan.trained, split, plan.training_batch, device, min(end, now + 12))


def run_training(plan: Plan, arguments: argparse.Namespace, deadline: float) -> Rows:
    """Train members for as many epochs as there is time."""
    if reason := missing("lightning", "torchmetrics") or ("" if arguments.data else "no --data"):
        yield {"skipped": reason}
        return
    steps = arguments.output / "steps.jsonl"
    rows = map(json.loads, steps.read_text("utf-8").splitlines()) if steps.exists() else ()
    speeds = {row["split"]: row["images_per_s"] for row in rows}
    if TRAINED_SPLIT not in speeds:
        yield {"skipped": f"the stage steps has not timed S={TRAINED_SPLIT}"}
        return
    left = deadline - time.monotonic() - START_UP_S
    epochs = max(1, int(left * speeds[TRAINED_SPLIT] / TRAINING_IMAGES * 0.7))
    run = arguments.output / "run"
    words = ("--data", arguments.data, "--network", plan.trained, "--split", str(TRAINED_SPLIT))
    words += ("--recipe", "cifar-fast", "--epochs", str(epochs), "--output", str(run), "--json")
    yield {"epochs": epochs, **call(coserve("train", *words), deadline)}
