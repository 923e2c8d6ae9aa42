"""A member's network as ONNX Runtime runs it."""

import asyncio
import logging
import time
from dataclasses import dataclass

import onnxruntime as ort

from coserve_server.engines.base import Batch, MemberRun
from coserve_server.engines.onnxruntime.lanes import Lane
from coserve_server.ensembles import Ensemble, Member
from coserve_server.errors import EngineError

logger = logging.getLogger(__name__)

STUCK = "still busy with an earlier batch"

FATAL = 4
"""ONNX Runtime's number of that severity."""


@dataclass(frozen=True)
class LoadedMember:
    """A member, its session, and the lane that runs it."""

    member: Member
    session: ort.InferenceSession
    lane: Lane

    def start(self, batch: Batch) -> asyncio.Future[MemberRun]:
        """Run a batch; when the future is cancelled the run is told to stop, and not waited for."""
        if self.lane.stuck:
            return self._left_out()
        options = ort.RunOptions()
        run = self.lane.submit(self.run, batch, options)
        future = asyncio.wrap_future(run)

        def abandon(_: asyncio.Future[MemberRun]) -> None:
            if future.cancelled():
                options.terminate = True
                self.lane.abandon(run)

        future.add_done_callback(abandon)
        return future

    def _left_out(self) -> asyncio.Future[MemberRun]:
        future: asyncio.Future[MemberRun] = asyncio.get_running_loop().create_future()
        now = time.perf_counter_ns()
        future.set_result(MemberRun(now, now, self.lane.device, None, STUCK))
        return future

    def run(self, batch: Batch, options: ort.RunOptions) -> MemberRun:
        """Run a batch on this thread; never raises."""
        member, device = self.member, self.lane.device
        start = time.perf_counter_ns()
        try:
            (logits,) = self.session.run([member.output_name], {member.input_name: batch}, options)
        # ONNX Runtime's errors share no base class but Exception.
        except Exception as error:
            end = time.perf_counter_ns()
            logger.warning("member %s failed: %s", member.name, error)
            return MemberRun(start, end, device, None, _first_line(error))
        return MemberRun(start, time.perf_counter_ns(), device, logits)


def create_session(ensemble: Ensemble, member: Member, threads: int) -> ort.InferenceSession:
    """Load a member on the CPU; with one thread it runs on the thread that calls it.

    Raises:
        EngineError: it cannot be loaded, or lacks a tensor its ensemble names.
    """
    options = ort.SessionOptions()
    # It would write to standard error past the server's log; its errors come as exceptions.
    options.log_severity_level = FATAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A pool that spins while it waits takes the cores from the member that runs beside it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(member.model_path, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's errors share no base class but Exception.
    except Exception as error:
        raise misfit(ensemble, member, f"cannot be loaded: {_first_line(error)}") from error
    for kind, wanted, tensors in (
        ("input", member.input_name, session.get_inputs()),
        ("output", member.output_name, session.get_outputs()),
    ):
        found = {tensor.name: tensor.type for tensor in tensors}
        if wanted not in found:
            raise misfit(ensemble, member, f"has no {kind} {wanted!r} (it has {', '.join(found)})")
        if found[wanted] != "tensor(float)":
            raise misfit(ensemble, member, f"{kind} {wanted!r} is {found[wanted]}, not FP32")
    return session


def misfit(ensemble: Ensemble, member: Member, reason: str) -> EngineError:
    """The error that a member cannot be served in its ensemble."""
    return EngineError(f"ensemble {ensemble.name}: member {member.name} ({member.model_path}) {reason}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
