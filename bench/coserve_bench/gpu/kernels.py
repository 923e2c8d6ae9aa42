"""Profiles ways to run members: how many kernels they launch, and how far those overlap on the GPU."""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from coserve_bench.gpu.devices import Call, Device, set_tf32
from coserve_bench.gpu.ways import build_members, make_ways, random_images

RUNS = 5


def profile_ways(
    networks: Sequence[str],
    splits: Sequence[int],
    batch_sizes: Sequence[int],
    device: Device,
    deadline: float,
) -> Iterator[dict[str, Any]]:
    """Yield a row per network, split, batch size and way in fp32, as long as there is time."""
    set_tf32(False)
    for network in networks:
        for split in splits:
            members = build_members(network, split, "fp32", device)
            for batch_size in batch_sizes:
                images = random_images(batch_size, "fp32", device)
                for way, call in make_ways(members, images, device).items():
                    if time.monotonic() > deadline:
                        return
                    case = {"network": network, "split": split, "batch_size": batch_size, "way": way}
                    yield case | read_overlap(_trace(call, device))


def _trace(call: Call, device: Device) -> Mapping[str, Any]:
    """Return the profiler's trace of some runs, in the format of chrome://tracing."""
    call()
    device.wait()
    activities = [ProfilerActivity.CPU]
    if device.torch_device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        for _ in range(RUNS):
            call()
            device.wait()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(file))
        trace: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return trace


def read_overlap(trace: Mapping[str, Any]) -> dict[str, Any]:
    """Return the kernels and streams of a trace, and the kernels' overlap.

    `overlap` is the sum of the kernels' durations / the time in which at least one runs: 1 if they run in
    turn. `busy_ms` is that time, and `gaps` the share of the time from the first to the last kernel in which
    none runs.
    """
    kernels = sorted(
        (event["ts"], event["ts"] + event["dur"], event["args"].get("stream"))
        for event in trace["traceEvents"]
        if event.get("cat") == "kernel"
    )
    if not kernels:
        return {"kernels": 0}
    busy = 0.0
    end = float("-inf")
    for start, stop, _ in kernels:
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return {
        "kernels": len(kernels),
        "streams": len({stream for *_, stream in kernels}),
        "busy_ms": busy / 1e3,
        "overlap": sum(stop - start for start, stop, _ in kernels) / busy,
        "gaps": 1 - busy / (end - kernels[0][0]),
    }
