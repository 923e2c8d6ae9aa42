"""Loading what a plan says: on cores as the server does, or on GPUs."""

import asyncio
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from coserve_cli.bench.errors import BenchError
from coserve_cli.bench.speedup.devices import CPU, Devices
from coserve_cli.bench.speedup.family import BF16
from coserve_cli.bench.speedup.ways import (
    ALL_DEVICES,
    FUSED,
    FUSED_PARALLEL,
    ONE_DEVICE,
    Plan,
    Way,
)
from coserve_server.cores import Cores
from coserve_server.engines.base import Batch, MemberRun
from coserve_server.engines.embedded.choice import Choice, create_engine
from coserve_server.engines.embedded.lanes import Lane, ThreadBudget
from coserve_server.engines.onnxruntime.sessions import LoadedMember
from coserve_server.ensembles import Ensemble, Member

FATAL = 4
"""ONNX Runtime's number of that severity: its errors come as exceptions."""


def load(plan: Plan) -> Way:
    """Load the networks of a plan, ready to answer.

    Raises:
        coserve_server.errors.EngineError, BenchError: one cannot be loaded.
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
    choice = Choice(plan.engine, threads, precision="bf16" if plan.division.precision == BF16 else "fp32")
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
    session = lane.submit(ort.InferenceSession, member.model_path, options, [CPU]).result()
    return _on_lanes([[LoadedMember(member, session, lane)]])


def _on_gpus(plan: Plan) -> Way:
    """A session per member and GPU; those of one lane run in turn, those of several each on a stream."""
    devices = plan.devices
    members = plan.division.fused.members if plan.way == FUSED else plan.division.ensemble.members
    if plan.way in (ONE_DEVICE, FUSED):
        lane = Lane("gpu", None)
        return _on_lanes([[_on_gpu(member, devices, 0, lane) for member in members]])
    if plan.way == ALL_DEVICES:
        # No network spans several GPUs: each takes a part of the batch through all members.
        lanes = [Lane(f"gpu{index}", None) for index in range(devices.count)]
        return _on_lanes(
            [
                [_on_gpu(member, devices, index, lane) for member in members]
                for index, lane in enumerate(lanes)
            ]
        )
    return _on_lanes(
        [[_on_gpu(member, devices, i, Lane(f"gpu-{i}", None)) for i, member in enumerate(members)]]
    )


def _on_gpu(member: Member, devices: Devices, index: int, lane: Lane) -> LoadedMember:
    name, provider_options = devices.provider(index)
    options = _options()
    if name != CPU:
        # Rather an error than a network that runs in part on the CPU.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(member.model_path, options, [(name, provider_options)])
    # ONNX Runtime's errors share no base class but Exception.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise BenchError(f"{member.name} cannot be loaded by {name}: {reason}") from error
    return LoadedMember(member, session, lane)


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = FATAL
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    return options


def _on_lanes(parts: Sequence[Sequence[LoadedMember]]) -> Way:
    """Members on lanes, for each part that a batch is cut into."""

    def start(batch: Batch) -> list[list[asyncio.Future[MemberRun]]]:
        # A batch smaller than the number of parts leaves the last without any.
        cuts = [cut for cut in np.array_split(batch, len(parts)) if len(cut)]
        return [[member.start(cut) for member in members] for cut, members in zip(cuts, parts, strict=False)]

    async def close() -> None:
        for lane in {member.lane for members in parts for member in members}:
            lane.close()

    return Way(start, close)
