"""A member as a library of this process runs it."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coserve_server.engines.base import Batch, MemberRun
from coserve_server.engines.embedded import lanes
from coserve_server.engines.embedded.lanes import Lane
from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.errors import EngineError

logger = logging.getLogger(__name__)

STUCK = "still busy with an earlier batch"


class Call(Protocol):
    """One run of one batch through one member."""

    def infer(self, batch: Batch) -> NDArray[np.float32]:
        """Give the logits, in memory of their own; whatever the library raises comes through."""

    def stop(self) -> None:
        """Have the run end early, with an error; called from another thread."""


class LoadedMember(ABC):
    """A member that is loaded, and the lane that runs it."""

    def __init__(self, member: Member, lane: Lane) -> None:
        self.member, self.lane = member, lane

    @abstractmethod
    def call(self) -> Call:
        """Prepare a run."""

    def close(self) -> None:  # noqa: B027  # most libraries' objects free what they hold when they go
        """Free it; called once its lane has closed."""

    def start(self, batch: Batch) -> asyncio.Future[MemberRun]:
        """Run a batch; when the future is cancelled the run is told to stop, and not waited for."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[MemberRun] = loop.create_future()

        def leave_out() -> None:
            now = time.perf_counter_ns()
            tell(MemberRun(now, now, self.lane.device, None, STUCK))

        def tell(run: MemberRun) -> None:
            if not future.done():
                future.set_result(run)

        if self.lane.stuck:
            leave_out()
            return future
        call = self.call()

        def work() -> None:
            # Not `asyncio.wrap_future`, whose way back to the event loop is longer.
            loop.call_soon_threadsafe(tell, self.run(batch, call))

        run = self.lane.enqueue(work, leave_out)

        def abandon(_: asyncio.Future[MemberRun]) -> None:
            if future.cancelled() and not run.cancel():
                call.stop()
                self.lane.abandon(run)
                # A clock may be early by its resolution.
                loop.call_later(lanes.PATIENCE_S + 0.02, self.lane.leave_out)

        future.add_done_callback(abandon)
        return future

    def run(self, batch: Batch, call: Call) -> MemberRun:
        """Run a batch on this thread; never raises."""
        device = self.lane.device
        start = time.perf_counter_ns()
        try:
            logits = call.infer(batch)
        # The libraries' errors share no base class but Exception.
        except Exception as error:
            end = time.perf_counter_ns()
            logger.warning("member %s failed: %s", self.member.name, error)
            return MemberRun(start, end, device, None, first_line(error))
        return MemberRun(start, time.perf_counter_ns(), device, logits)


Load = Callable[[Ensemble, Member, Lane], LoadedMember]
"""Loads a member that is to run on a lane; called on the lane's own thread.

Raises EngineError where it cannot be loaded, or lacks a tensor its ensemble names."""


def check_tensors(
    ensemble: Ensemble, member: Member, inputs: Mapping[str, str], outputs: Mapping[str, str], fp32: str
) -> None:
    """Require the tensors that the ensemble names, both FP32.

    Args:
        inputs, outputs: the network's, types by name.
        fp32: the library's name of that type.

    Raises:
        EngineError: one is missing or of another type.
    """
    for kind, wanted, found in (
        ("input", member.input_name, inputs),
        ("output", member.output_name, outputs),
    ):
        if wanted not in found:
            raise misfit(ensemble, member, f"has no {kind} {wanted!r} (it has {', '.join(found)})")
        if found[wanted] != fp32:
            raise misfit(ensemble, member, f"{kind} {wanted!r} is {found[wanted]}, not FP32")


def misfit(ensemble: Ensemble, member: Member, reason: str) -> EngineError:
    """The error that a member cannot be served in its ensemble."""
    return EngineError(f"ensemble {ensemble.name}: member {member.name} ({member.model_path}) {reason}")


def first_line(error: Exception) -> str:
    """The first line of what a library says, or its error's type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
