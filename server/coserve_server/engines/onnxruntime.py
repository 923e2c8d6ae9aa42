"""Runs every member in this process: one ONNX Runtime session and, where cores allow, one thread each."""

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnxruntime as ort

from coserve_server.engines.base import Batch, MemberRun
from coserve_server.errors import EngineError
from coserve_server.repository import Ensemble, Member

logger = logging.getLogger(__name__)

DEVICE = "cpu"


@dataclass(frozen=True)
class ThreadBudget:
    """How an ensemble shares the cores: `lanes` members at once, each on `threads` threads."""

    lanes: int
    threads: int

    @classmethod
    def share(cls, members: int, cores: int) -> "ThreadBudget":
        """Divide `cores` among `members`, so that `lanes * threads <= cores`."""
        lanes = min(members, cores)
        return cls(lanes, cores // lanes)


class _Loaded:
    """An ensemble's sessions and the threads ("lanes") they run on; member i always runs on the same lane."""

    def __init__(self, ensemble: Ensemble, budget: ThreadBudget) -> None:
        self.budget = budget
        self.sessions = [_session(ensemble, member, budget.threads) for member in ensemble.members]
        self.lanes = [ThreadPoolExecutor(1, f"{ensemble.name}-lane{i}") for i in range(budget.lanes)]

    def lane(self, member: int) -> ThreadPoolExecutor:
        return self.lanes[member % len(self.lanes)]


class OnnxRuntimeEngine:
    """The embedded engine. The cores belong to one batch of one ensemble at a time."""

    def __init__(self, ensembles: Mapping[str, Ensemble], cores: int) -> None:
        """Load and warm every member.

        Raises:
            EngineError: a member cannot be loaded, or does not fit its ensemble.
        """
        self.ensembles = ensembles
        self._turn = asyncio.Lock()
        self._loaded: dict[str, _Loaded] = {}
        for name, ensemble in ensembles.items():
            self._loaded[name] = _Loaded(ensemble, ThreadBudget.share(len(ensemble.members), cores))
            self._warm_up(ensemble)

    def ready_members(self, ensemble: Ensemble) -> frozenset[str]:
        """All members of a loaded ensemble; none after `close`."""
        return frozenset(m.name for m in ensemble.members if ensemble.name in self._loaded)

    def describe(self, ensemble: Ensemble) -> str:
        """The ensemble's thread budget."""
        budget = self._loaded[ensemble.name].budget
        return f"{budget.lanes} at a time, {budget.threads} thread{'s' * (budget.threads > 1)} each"

    async def start(self, ensemble: Ensemble, batch: Batch) -> list[asyncio.Future[MemberRun]]:
        """Wait until the cores are free, then hand the batch to every member's lane."""
        await self._turn.acquire()
        loop, loaded = asyncio.get_running_loop(), self._loaded[ensemble.name]
        running = len(ensemble.members)

        def finished(_: Future[MemberRun]) -> None:
            loop.call_soon_threadsafe(release)

        def release() -> None:
            nonlocal running
            running -= 1
            if running == 0:
                self._turn.release()

        futures = []
        for index, member in enumerate(ensemble.members):
            options = ort.RunOptions()
            run = loaded.lane(index).submit(_run, loaded.sessions[index], member, batch, options)
            run.add_done_callback(finished)
            future = asyncio.wrap_future(run)
            future.add_done_callback(partial(_stop_if_cancelled, options))
            futures.append(future)
        return futures

    async def close(self) -> None:
        """Wait for the batch that runs, then end the threads and free the sessions."""
        async with self._turn:
            for loaded in self._loaded.values():
                for lane in loaded.lanes:
                    lane.shutdown()
            self._loaded.clear()

    def _warm_up(self, ensemble: Ensemble) -> None:
        """Run one image and, to find exports with a frozen batch, two; check what comes out."""
        how, loaded = ensemble.preprocessing, self._loaded[ensemble.name]
        for size in range(1, min(2, ensemble.max_batch_size) + 1):
            batch = np.zeros((size, 3, how.height, how.width), np.float32)
            wanted = (size, len(ensemble.labels))
            for index, member in enumerate(ensemble.members):
                lane, session = loaded.lane(index), loaded.sessions[index]
                run = lane.submit(_run, session, member, batch, ort.RunOptions()).result()
                if run.logits is None:
                    raise _misfit(ensemble, member, f"fails on a batch of {size}: {run.error}")
                if run.logits.shape != wanted:
                    got = list(run.logits.shape)
                    raise _misfit(ensemble, member, f"gives logits {got} for {list(wanted)} (batch, labels)")


def _session(ensemble: Ensemble, member: Member, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A pool that spins while it waits takes the cores from the member that runs beside it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(member.model_path, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's errors share no base class but Exception.
    except Exception as error:
        raise _misfit(ensemble, member, f"cannot be loaded: {_first_line(error)}") from error
    for kind, wanted, tensors in (
        ("input", member.input_name, session.get_inputs()),
        ("output", member.output_name, session.get_outputs()),
    ):
        found = {tensor.name: tensor.type for tensor in tensors}
        if wanted not in found:
            raise _misfit(ensemble, member, f"has no {kind} {wanted!r} (it has {', '.join(found)})")
        if found[wanted] != "tensor(float)":
            raise _misfit(ensemble, member, f"{kind} {wanted!r} is {found[wanted]}, not FP32")
    return session


def _run(session: ort.InferenceSession, member: Member, batch: Batch, options: ort.RunOptions) -> MemberRun:
    start = time.perf_counter_ns()
    try:
        (logits,) = session.run([member.output_name], {member.input_name: batch}, options)
    # ONNX Runtime's errors share no base class but Exception.
    except Exception as error:
        end = time.perf_counter_ns()
        logger.warning("member %s failed: %s", member.name, error)
        return MemberRun(start, end, DEVICE, None, _first_line(error))
    return MemberRun(start, time.perf_counter_ns(), DEVICE, logits)


def _stop_if_cancelled(options: ort.RunOptions, future: "asyncio.Future[MemberRun]") -> None:
    if future.cancelled():
        options.terminate = True


def _misfit(ensemble: Ensemble, member: Member, reason: str) -> EngineError:
    return EngineError(f"ensemble {ensemble.name}: member {member.name} ({member.model_path}) {reason}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
