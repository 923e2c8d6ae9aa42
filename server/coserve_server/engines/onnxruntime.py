"""Runs every member in this process: one ONNX Runtime session and, where cores allow, one thread each."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np
import onnxruntime as ort

from coserve_server.cores import Cores
from coserve_server.engines.base import Batch, MemberRun
from coserve_server.ensembles import Ensemble, Member
from coserve_server.errors import EngineError

logger = logging.getLogger(__name__)

NONE: frozenset[str] = frozenset()
STUCK = "still busy with an earlier batch"

P = ParamSpec("P")
T = TypeVar("T")


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


class _Lane:
    """A thread that runs members one after another, on cores of its own where `pinned` names them."""

    def __init__(self, name: str, pinned: tuple[int, ...] | None) -> None:
        self._thread = ThreadPoolExecutor(1, name)
        self._abandoned: set[Future[MemberRun]] = set()
        self.device = "cpu"
        if pinned:
            self._thread.submit(os.sched_setaffinity, 0, pinned).result()
            self.device = f"cpu:{','.join(map(str, pinned))}"

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return self._thread.submit(function, *args, **kwargs)

    @property
    def stuck(self) -> bool:
        """Whether it is still at a run that nobody waits for: a thread cannot be killed."""
        return bool(self._abandoned)

    def abandon(self, run: Future[MemberRun]) -> None:
        self._abandoned.add(run)
        run.add_done_callback(self._abandoned.discard)

    def close(self) -> None:
        self._thread.shutdown(wait=not self.stuck, cancel_futures=True)


class _Loaded:
    """An ensemble's sessions and the lanes they run on; member i always runs on the same lane."""

    def __init__(self, ensemble: Ensemble, cores: Cores) -> None:
        self.budget = ThreadBudget.share(len(ensemble.members), cores.count)
        size = self.budget.threads
        lanes = [
            _Lane(f"{ensemble.name}-{i}", cores.ids and cores.ids[i * size : (i + 1) * size])
            for i in range(self.budget.lanes)
        ]
        self.members: list[_LoadedMember] = []
        for index, member in enumerate(ensemble.members):
            lane = lanes[index % len(lanes)]
            # A session's own threads inherit the cores of the thread that creates it.
            session = lane.submit(create_session, ensemble, member, size).result()
            self.members.append(_LoadedMember(member, session, lane))
        self.lanes = lanes


@dataclass(frozen=True)
class _LoadedMember:
    member: Member
    session: ort.InferenceSession
    lane: _Lane

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


class OnnxRuntimeEngine:
    """The embedded engine. The cores belong to one batch of one ensemble at a time."""

    def __init__(self, ensembles: Mapping[str, Ensemble], cores: Cores) -> None:
        """Load and warm every member.

        Raises:
            EngineError: a member cannot be loaded, or does not fit its ensemble.
        """
        self.ensembles, self._cores = ensembles, cores
        self._turn = asyncio.Lock()
        self._loaded: dict[str, _Loaded] = {}
        for name, ensemble in ensembles.items():
            self._loaded[name] = _Loaded(ensemble, cores)
            self._warm_up(ensemble)

    def ready_members(self, ensemble: Ensemble) -> frozenset[str]:
        """Members of a loaded ensemble whose thread is not stuck; none after `close`."""
        if ensemble.whole.name not in self._loaded:
            return NONE
        return frozenset(one.member.name for one in self._members(ensemble) if not one.lane.stuck)

    def faults(self) -> list[str]:
        """None: what cannot be loaded keeps the engine from starting."""
        return []

    def absence(self, name: str | None) -> str | None:
        """None: every ensemble there is, is loaded."""
        return None

    def describe(self, ensemble: Ensemble) -> str:
        """The ensemble's thread budget, and the devices of its lanes."""
        loaded = self._loaded[ensemble.name]
        lanes, threads = loaded.budget.lanes, loaded.budget.threads
        devices = ", ".join(lane.device for lane in loaded.lanes)
        share = f"{lanes} at a time, {threads} thread{'s' * (threads > 1)} each on {devices}"
        return f"{share} ({self._cores.count} cores usable)"

    async def start(
        self, ensemble: Ensemble, batch: Batch, expires: float
    ) -> list[asyncio.Future[MemberRun]]:
        """Wait until the cores are free, then hand the batch to every member's lane that is not stuck."""
        await asyncio.wait_for(self._turn.acquire(), expires - asyncio.get_running_loop().time())
        members = self._members(ensemble)
        running = len(members)

        def finished(_: asyncio.Future[MemberRun]) -> None:
            nonlocal running
            running -= 1
            if running == 0:
                self._turn.release()

        # Nothing else between the submissions: the members are to start together.
        futures = [member.start(batch) for member in members]
        for future in futures:
            future.add_done_callback(finished)
        return futures

    async def close(self) -> None:
        """Wait for the batch that runs, then end the threads and free the sessions."""
        async with self._turn:
            for loaded in self._loaded.values():
                for lane in loaded.lanes:
                    lane.close()
            self._loaded.clear()

    def _members(self, ensemble: Ensemble) -> list[_LoadedMember]:
        return [one for one in self._loaded[ensemble.whole.name].members if one.member in ensemble.members]

    def _warm_up(self, ensemble: Ensemble) -> None:
        """Run one image and, to find exports with a frozen batch, two; check what comes out."""
        how = ensemble.preprocessing
        for size in range(1, min(2, ensemble.max_batch_size) + 1):
            batch = np.zeros((size, 3, how.height, how.width), np.float32)
            wanted = (size, len(ensemble.labels))
            for loaded in self._loaded[ensemble.name].members:
                run = loaded.lane.submit(loaded.run, batch, ort.RunOptions()).result()
                if run.logits is None:
                    raise _misfit(ensemble, loaded.member, f"fails on a batch of {size}: {run.error}")
                if run.logits.shape != wanted:
                    shapes = f"logits {list(run.logits.shape)} where {list(wanted)} is wanted"
                    raise _misfit(ensemble, loaded.member, f"gives {shapes} (batch, labels)")


def create_session(ensemble: Ensemble, member: Member, threads: int) -> ort.InferenceSession:
    """Load a member on the CPU; with one thread it runs on the thread that calls it.

    Raises:
        EngineError: it cannot be loaded, or lacks a tensor its ensemble names.
    """
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


def _misfit(ensemble: Ensemble, member: Member, reason: str) -> EngineError:
    return EngineError(f"ensemble {ensemble.name}: member {member.name} ({member.model_path}) {reason}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
