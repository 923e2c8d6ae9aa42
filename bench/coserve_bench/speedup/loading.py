"""Loading what a plan says: on cores as the server does, or on GPUs."""

import asyncio
import logging
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from coserve_bench.speedup.family import BF16
from coserve_bench.speedup.ways import (
    ALL_DEVICES,
    CONCURRENT,
    FUSED,
    FUSED_PARALLEL,
    GRAPHS,
    ONE_DEVICE,
    ONNXRUNTIME,
    OPENVINO,
    Plan,
    Way,
)
from coserve_server.engines.base import Images
from coserve_server.engines.embedded.lanes import Lane, ThreadBudget
from coserve_server.engines.embedded.members import LoadedMember
from coserve_server.engines.embedded.options import EngineOptions
from coserve_server.engines.factory import create_engine
from coserve_server.engines.onnxruntime import sessions
from coserve_server.engines.onnxruntime.gpus import GpuLoader, gpu_device
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.machine.cores import Cores
from coserve_server.outcomes import MemberRun
from coserve_server.settings import Precision

FATAL = 4
"""ONNX Runtime's number of that severity: its errors come as exceptions."""

# Members that Ctrl-C stops would be reported as failed.
logging.getLogger("coserve_server").addHandler(logging.NullHandler())


def load(plan: Plan) -> Way:
    """Load the networks of a plan, ready to answer.

    Raises:
        coserve_server.errors.EngineError: one cannot be loaded.
    """
    if plan.devices.gpus:
        return _on_gpus(plan)
    division, cores = plan.division, plan.devices.cores
    if plan.way == FUSED_PARALLEL:
        return _branches_at_once(division.fused, ThreadBudget.share(division.split, cores.count), cores)
    if plan.way == ONE_DEVICE:
        return _served(plan, division.ensemble, plan.devices.one_core, 1)
    if plan.way == ALL_DEVICES:
        return _served(plan, division.ensemble, cores, cores.count)
    return _served(plan, division.fused if plan.way == FUSED else division.ensemble, cores)


def _served(plan: Plan, ensemble: Ensemble, cores: Cores, threads: int | None = None) -> Way:
    """As the server runs it: where a member has as many threads as there are cores, members take turns."""
    precision: Precision = "bf16" if plan.division.precision == BF16 else "fp32"
    choice = EngineOptions(
        OPENVINO if plan.engine == OPENVINO else ONNXRUNTIME,
        threads,
        precision=precision,
        gpus=plan.devices.gpus,
        cuda_graphs=_graphs(plan),
    )
    engine = create_engine(choice, cores, {ensemble.name: ensemble})
    return Way(lambda batch: [engine.start(ensemble, batch)], engine.close)


def _branches_at_once(fused: Ensemble, budget: ThreadBudget, cores: Cores) -> Way:
    """ONNX Runtime's parallel executor: as many branches at once as the server would run members."""
    (member,) = fused.members
    options = _options()
    options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.inter_op_num_threads, options.intra_op_num_threads = budget.lanes, budget.threads
    lane = Lane(f"{fused.name}-parallel", cores.ids)
    # A session's own threads inherit the cores of the thread that creates it.
    session = lane.submit(ort.InferenceSession, member.model_path, options, [sessions.CPU]).result()
    return _on_lanes([[sessions.CpuMember(member, session, lane)]])


def _on_gpus(plan: Plan) -> Way:
    """As the server runs members at once; others in turn on one GPU, or on each with a part of the batch."""
    division, gpus = plan.division, plan.devices.gpus
    if plan.way == CONCURRENT:
        return _served(plan, division.ensemble, plan.devices.cores)
    ensemble = division.fused if plan.way == FUSED else division.ensemble
    load_member = GpuLoader(gpus, _graphs(plan))
    # No network spans several GPUs.
    used = gpus if plan.way == ALL_DEVICES else gpus[:1]
    lanes = [Lane(f"gpu{gpu}", device=gpu_device(gpu)) for gpu in used]
    # On the thread that will run them: a CUDA graph is that of the thread that recorded it.
    parts = [
        [lane.submit(load_member, ensemble, member, lane).result() for member in ensemble.members]
        for lane in lanes
    ]
    return _on_lanes(parts)


def _graphs(plan: Plan) -> tuple[int, ...]:
    return plan.devices.graphs if plan.engine == GRAPHS else ()


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    return options


def _on_lanes(parts: Sequence[Sequence[LoadedMember]]) -> Way:
    """Members on lanes, for each part that a batch is cut into."""

    def start(batch: Images) -> list[list[asyncio.Future[MemberRun]]]:
        # A batch smaller than the number of parts leaves the last without any.
        cuts = [cut for cut in np.array_split(batch, len(parts)) if len(cut)]
        return [[member.start(cut) for member in members] for cut, members in zip(cuts, parts, strict=False)]

    async def close() -> None:
        for lane in {member.lane for members in parts for member in members}:
            lane.close()

    return Way(start, close)
