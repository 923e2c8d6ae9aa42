"""A member loaded by a library in this process."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coserve_server.engines.base import Batch, Images, as_array
from coserve_server.engines.embedded import lanes
from coserve_server.engines.embedded.lanes import Lane
from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.errors import EngineError, first_line
from coserve_server.outcomes import Failure, MemberRun

logger = logging.getLogger(__name__)

STUCK = Failure("stuck", "still busy with an earlier batch")


class Call(Protocol):
    """One run of one batch through one member."""

    def infer(self, images: Images) -> NDArray[np.float32]:
        """Return the logits `[N, C]` in memory of their own; the library's errors pass through."""

    def stop(self) -> None:
        """Make the run end early, with an error; called from another thread."""


class LoadedMember(ABC):
    """A loaded member and the lane that runs it."""

    def __init__(self, member: Member, lane: Lane) -> None:
        self.member = member
        self.lane = lane

    @abstractmethod
    def call(self) -> Call:
        """Prepare a run."""

    def close(self) -> None:  # noqa: B027  # most libraries free what an object holds when it goes
        """Free the member; called after its lane has closed."""

    def start(self, images: Images | Batch, request_ids: str = "") -> asyncio.Future[MemberRun]:
        """Run a batch; cancelling the future tells the run to stop, without waiting for it.

        Args:
            request_ids: ids of the batch's requests, for the log.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[MemberRun] = loop.create_future()

        def finish(run: MemberRun) -> None:
            if not future.done():
                future.set_result(run)

        def leave_out() -> None:
            now = time.perf_counter_ns()
            finish(MemberRun(self.member.name, self.lane.device, now, now, None, STUCK))

        if self.lane.stuck:
            leave_out()
            return future
        call = self.call()

        def work() -> None:
            # Faster than `asyncio.wrap_future`, which takes more steps back to the event loop.
            loop.call_soon_threadsafe(finish, self.run(images, call, request_ids))

        run = self.lane.enqueue(work, leave_out, call.stop)

        def abandon(_: asyncio.Future[MemberRun]) -> None:
            if future.cancelled() and not run.cancel():
                call.stop()
                self.lane.abandon(run)
                # A timer may fire early by the clock's resolution.
                loop.call_later(lanes.PATIENCE_S + 0.02, self.lane.leave_out)

        future.add_done_callback(abandon)
        return future

    def run(self, images: Images | Batch, call: Call, request_ids: str = "") -> MemberRun:
        """Run a batch on this thread; never raises."""
        name = self.member.name
        device = self.lane.device
        start = time.perf_counter_ns()
        try:
            array = as_array(images)
            start = time.perf_counter_ns()
            logits = call.infer(array)
        # The libraries' errors share no base class but Exception.
        except Exception as error:
            end = time.perf_counter_ns()
            extra = {"request_id": request_ids} if request_ids else None
            logger.warning("member %s failed: %s", name, error, extra=extra)
            return MemberRun(name, device, start, end, None, Failure("failed", first_line(error)))
        return MemberRun(name, device, start, time.perf_counter_ns(), logits)


Load = Callable[[Ensemble, Member, Lane], LoadedMember]
"""Loads a member for a lane; called on the lane's own thread.

Raises EngineError if the member cannot be loaded, or lacks a tensor that its ensemble names."""


def check_tensors(
    ensemble: Ensemble, member: Member, inputs: Mapping[str, str], outputs: Mapping[str, str], fp32: str
) -> None:
    """Check that the network has the tensors that the ensemble names, both FP32.

    Args:
        inputs: the types of the network's inputs, by name.
        outputs: the types of its outputs, by name.
        fp32: the library's name for FP32.

    Raises:
        EngineError: a tensor is missing or of another type.
    """
    for kind, wanted, tensors in (
        ("input", member.input_name, inputs),
        ("output", member.output_name, outputs),
    ):
        if wanted not in tensors:
            raise misfit(ensemble, member, f"has no {kind} {wanted!r} (it has {', '.join(tensors)})")
        if tensors[wanted] != fp32:
            raise misfit(ensemble, member, f"{kind} {wanted!r} is {tensors[wanted]}, not FP32")


def misfit(ensemble: Ensemble, member: Member, reason: str) -> EngineError:
    """Return an error that says why a member cannot be served in its ensemble."""
    return EngineError(f"ensemble {ensemble.name}: member {member.name} ({member.model_path}) {reason}")
