"""Loads the networks of a plan: on cores as the server does, or on GPUs."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnxruntime as ort

from coserve_bench.engine import ONNXRUNTIME, OPENVINO, LoadedNetworks, load_ensemble
from coserve_bench.speedup.family import BF16, TF32
from coserve_bench.speedup.ways import (
    ALL_DEVICES,
    CONCURRENT,
    FUSED,
    FUSED_PARALLEL,
    GRAPHS,
    ONE_DEVICE,
    Plan,
)
from coserve_server.engines.base import Images
from coserve_server.engines.embedded.lanes import Lane, ThreadBudget
from coserve_server.engines.embedded.members import LoadedMember
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.onnxruntime import sessions
from coserve_server.engines.onnxruntime.gpus import GpuLane, GpuLoader
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.machine.cores import Cores
from coserve_server.outcomes import MemberRun
from coserve_server.settings import Precision


def load(plan: Plan) -> LoadedNetworks:
    """Load the networks of a plan.

    Raises:
        coserve_server.errors.EngineError: a network cannot be loaded.
    """
    if plan.devices.gpus:
        return _on_gpus(plan)
    division = plan.division
    cores = plan.devices.cores
    if plan.way == FUSED_PARALLEL:
        enough = cores.enough_for(division.split)
        return _parallel_branches(division.fused, ThreadBudget.share(division.split, enough.nodes), enough)
    if plan.way == ONE_DEVICE:
        return _served(plan, division.ensemble, plan.devices.one_core, 1)
    if plan.way == ALL_DEVICES:
        # On hyper-threads, that many threads would leave room for a second member.
        return _served(plan, division.ensemble, plan.devices.single_threaded_cores, cores.count)
    return _served(plan, division.fused if plan.way == FUSED else division.ensemble, cores)


def _served(plan: Plan, ensemble: Ensemble, cores: Cores, threads: int | None = None) -> LoadedNetworks:
    """Load an ensemble as the server does; members with as many threads as there are cores take turns."""
    precision: Precision = "bf16" if plan.division.precision == BF16 else "fp32"
    engine = OPENVINO if plan.engine == OPENVINO else ONNXRUNTIME
    options = replace(_gpu_options(plan), engine=engine, threads=threads, precision=precision)
    return load_ensemble(ensemble, options, cores)


def _parallel_branches(fused: Ensemble, budget: ThreadBudget, cores: Cores) -> LoadedNetworks:
    """Load a fused network into ONNX Runtime's parallel executor.

    As many branches run at the same time as the server would run members.
    """
    (member,) = fused.members
    options = ort.SessionOptions()
    # Errors are raised as exceptions too.
    options.log_severity_level = sessions.FATAL
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.inter_op_num_threads = budget.lanes
    options.intra_op_num_threads = budget.threads
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    lane = Lane(f"{fused.name}-parallel", cores.ids)
    # Created on the lane: a session's threads inherit the cores of the thread that creates it.
    session = lane.submit(ort.InferenceSession, member.model_path, options, [sessions.CPU]).result()
    return _on_lanes(fused.name, [[sessions.CpuMember(member, session, lane)]])


def _on_gpus(plan: Plan) -> LoadedNetworks:
    """Load networks on GPUs.

    Concurrent members run as in the server. Otherwise members take turns on one GPU, or on every GPU with a
    part of the batch, since no network spans several GPUs.
    """
    division = plan.division
    if plan.way == CONCURRENT:
        return _served(plan, division.ensemble, plan.devices.cores)
    ensemble = division.fused if plan.way == FUSED else division.ensemble
    options = _gpu_options(plan)
    load_member = GpuLoader(options)
    used = options.gpus if plan.way == ALL_DEVICES else options.gpus[:1]
    lanes = [GpuLane(f"gpu{gpu}", [gpu], options.gpu_precision) for gpu in used]
    # Loaded on the lanes: a CUDA graph can only be used by the thread that recorded it.
    parts = [
        [lane.submit(load_member, ensemble, member, lane).result() for member in ensemble.members]
        for lane in lanes
    ]
    return _on_lanes(ensemble.name, parts)


def _gpu_options(plan: Plan) -> EngineOptions:
    return EngineOptions(
        gpus=plan.devices.gpus,
        cuda_graphs=plan.engine == GRAPHS,
        gpu_precision="tf32" if plan.division.precision == TF32 else "fp32",
    )


def _on_lanes(name: str, parts: Sequence[Sequence[LoadedMember]]) -> LoadedNetworks:
    """Return members that run on lanes.

    Args:
        parts: the members for each part that a batch is cut into.
    """

    def start(images: Images) -> list[list[asyncio.Future[MemberRun]]]:
        # The last cuts are empty if the batch has fewer images than there are parts.
        cuts = [cut for cut in np.array_split(images, len(parts)) if len(cut)]
        return [[member.start(cut) for member in members] for cut, members in zip(cuts, parts, strict=False)]

    async def close() -> None:
        for lane in {member.lane for members in parts for member in members}:
            lane.close()

    return LoadedNetworks(name, start, close)
