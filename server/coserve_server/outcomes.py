"""What members did: for a batch that the engine ran, and for a request in it.

All times are nanoseconds on the clock of `time.perf_counter_ns`.
"""

import asyncio
import time
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

LATE = "no answer before the deadline"


@dataclass(frozen=True)
class Failure:
    """Why a member gave no logits.

    Attributes:
        kind: `late`: it missed the deadline; `failed`: it raised, or gave unusable logits; `stuck`: it never
            started, because an earlier run on its thread does not end.
        reason: text fit for a user.
    """

    kind: Literal["late", "failed", "stuck"]
    reason: str


@dataclass(frozen=True)
class MemberRun:
    """One member's work on a batch, or on all batches of one request.

    Either `logits` or `failure` is None. For a request that stopped early, both are if the member was not
    needed, and neither is if it failed for some of the images.

    Attributes:
        name: the member's.
        device: where it ran; None if it was late or not needed.
        start_ns, end_ns: begin and end of its work. If it was late: when the engine received the batch, and
            when the request stopped waiting.
        logits: FP32 `[N, C]`. An engine need not check their shape or values. NaN for images that the member
            was not needed for.
    """

    name: str
    device: str | None
    start_ns: int
    end_ns: int
    logits: NDArray[np.float32] | None
    failure: Failure | None = None

    @property
    def late(self) -> bool:
        """Whether the member missed the deadline."""
        return self.failure is not None and self.failure.kind == "late"

    def without_logits(self, reason: str) -> "MemberRun":
        """Return this run as a failure."""
        return replace(self, logits=None, failure=Failure("failed", reason))


@dataclass(frozen=True)
class Place:
    """Where a batch runs.

    Attributes:
        copy: index of the ensemble's copy.
        cores: numbers of the cores or GPUs that the copy occupies, or a backend's key.
    """

    copy: int = 0
    cores: frozenset[Hashable] = frozenset()


@dataclass(eq=False)
class BatchRun:
    """A batch that the engine is running, at all members or at one.

    Attributes:
        size: number of images.
        began_ns: when the engine received it.
        names: the members', in the ensemble's order.
        members: one future per member, in the same order.
        finished: done when all members are.
        waiting: number of requests that still want the answer; at one member, of images.
        place: what it occupies.
    """

    size: int
    began_ns: int
    names: Sequence[str]
    members: Sequence["asyncio.Future[MemberRun]"]
    finished: "asyncio.Future[Any]"
    waiting: int = 0
    place: Place = Place()

    @property
    def unfinished(self) -> int:
        """Number of members that have neither answered nor been cancelled."""
        return sum(not member.done() for member in self.members)

    def outcomes(self) -> list[MemberRun]:
        """Return what the members did, once all are done; cancelled ones count as late."""
        return [self._outcome(name, run) for name, run in zip(self.names, self.members, strict=True)]

    def release(self) -> None:
        """Give up the interest of one request or image; without any left, tell the members to stop."""
        self.waiting -= 1
        if self.waiting == 0:
            for member in self.members:
                member.cancel()

    def make_late(self, name: str, now_ns: int) -> MemberRun:
        """Return the run of a member that has not answered by now."""
        return MemberRun(name, None, self.began_ns, now_ns, None, Failure("late", LATE))

    def _outcome(self, name: str, run: "asyncio.Future[MemberRun]") -> MemberRun:
        if run.cancelled():
            return self.make_late(name, time.perf_counter_ns())
        if error := run.exception():
            return self.make_late(name, time.perf_counter_ns()).without_logits(str(error))
        return run.result()


@dataclass(eq=False)
class Share:
    """One request's rows of a batch.

    Attributes:
        batch: the batch they are part of.
        rows: the rows; a list of their indices if they may lie apart.
        runs: what each member did with them, in the ensemble's order; empty until `settle`.
        ended_ns: when the last answer that counts arrived, or waiting for it ended; 0 until `settle`.
    """

    batch: BatchRun
    rows: slice | list[int]
    runs: Sequence[MemberRun] = ()
    ended_ns: int = 0

    @property
    def began_ns(self) -> int:
        """When the first member began, maybe behind an earlier batch; until `settle`, when the batch did."""
        started = [run.start_ns for run in self.runs if not run.late]
        return max(self.batch.began_ns, min(started, default=0))

    def settle(self, classes: int) -> None:
        """Take the answers that have arrived; members without one are late.

        Logits that would make the average wrong become failures.

        Args:
            classes: number of logits wanted per image.
        """
        now = time.perf_counter_ns()
        self.runs = [
            self._own(member.result(), classes) if member.done() else self.batch.make_late(name, now)
            for name, member in zip(self.batch.names, self.batch.members, strict=True)
        ]
        self.ended_ns = max(run.end_ns for run in self.runs)

    def _own(self, run: MemberRun, classes: int) -> MemberRun:
        """Return the run with this share's logits alone."""
        if run.logits is None:
            return run
        wanted = (self.batch.size, classes)
        if run.logits.shape != wanted:
            shapes = f"{list(run.logits.shape)}, expected {list(wanted)}"
            return run.without_logits(f"gave logits {shapes} (batch, labels)")
        logits = run.logits[self.rows]
        if not np.isfinite(logits).all():
            return run.without_logits("logits are not finite")
        return replace(run, logits=logits)


def join(runs: Sequence[MemberRun]) -> MemberRun:
    """Join one member's runs for the batches of a request.

    A member that failed in any batch counts in none, so that all images are averaged alike.
    """
    if len(runs) == 1:
        return runs[0]
    failure = next((run.failure for run in runs if run.failure and not run.late), None)
    failure = failure or next((run.failure for run in runs if run.failure), None)
    answered = [run for run in runs if not run.late] or runs
    logits = [run.logits for run in runs if run.logits is not None]
    return MemberRun(
        name=answered[0].name,
        device=answered[0].device,
        start_ns=answered[0].start_ns,
        end_ns=answered[-1].end_ns,
        logits=None if failure else np.concatenate(logits),
        failure=failure,
    )


def overlap(batches: Iterable[Sequence[MemberRun]]) -> float:
    """Return the sum of the members' durations divided by the wall time from first start to last end.

    It is S if S members ran in parallel, and 1 if they ran in turn or took no measurable time. Late members,
    and the time between batches, do not count.

    Args:
        batches: the members' runs of each batch.
    """
    busy = 0
    wall = 0
    for batch in batches:
        runs = [run for run in batch if not run.late]
        if not runs:
            continue
        busy += sum(run.end_ns - run.start_ns for run in runs)
        wall += max(run.end_ns for run in runs) - min(run.start_ns for run in runs)
    return busy / wall if wall else 1.0
