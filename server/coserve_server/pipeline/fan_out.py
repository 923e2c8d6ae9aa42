"""From a batch to every member's logits: the deadline, the quorum, and the timeline."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coserve_server.engines.base import Batch, MemberRun
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import DeadlineError, NoQuorumError
from coserve_server.observability.record import current
from coserve_server.pipeline.batching import Batcher, Share

LATE = "no answer before the deadline"


@dataclass(frozen=True)
class MemberOutcome:
    """What one member did for a request: either `logits` or `error` is None.

    Attributes:
        device: where it ran; None where it did not answer in time.
        start_ms, end_ms: of its first start and last end, since the first member's start.
        logits: FP32 `[N, C]`, finite.
    """

    name: str
    device: str | None
    start_ms: float | None
    end_ms: float | None
    logits: NDArray[np.float32] | None
    error: str | None


@dataclass(frozen=True)
class FanOut:
    """A batch through an ensemble's members; enough of them have logits.

    Attributes:
        members: in the ensemble's order.
        overlap: sum of the members' durations / wall time from first start to last end, over all chunks.
        queue_ns: spent waiting for the engine's turn.
        inference_ns: from handing over to the last answer, without the waiting between chunks.
    """

    members: tuple[MemberOutcome, ...]
    overlap: float
    queue_ns: int
    inference_ns: int


@dataclass(frozen=True)
class Chunk:
    """Images that went to the members together, in a batch that may have held others' too.

    Attributes:
        began_ns, ended_ns: when the engine was given them, and when the last answer that counts was there.
        runs: in the ensemble's order; None of a member that did not answer in time.
    """

    began_ns: int
    ended_ns: int
    runs: tuple[MemberRun | None, ...]


async def fan_out(batcher: Batcher, ensemble: Ensemble, batch: Batch, quorum: int, expires: float) -> FanOut:
    """Run a batch through all members.

    Args:
        batch: FP32 `[N, 3, H, W]`, N at least 1.
        quorum: members that must answer.
        expires: when to stop waiting, on the clock of `loop.time()`.

    Raises:
        DeadlineError: fewer than `quorum` members answered in time.
        NoQuorumError: so many members failed that fewer than `quorum` have logits.
    """
    record = current()
    record.asked_ns = asked = time.perf_counter_ns()
    shares = await batcher.start(ensemble, batch, expires)
    try:
        finished = [share.run.finished for share in shares]
        await asyncio.wait(finished, timeout=max(0, expires - asyncio.get_running_loop().time()))
        chunks = [_chunk(share, len(ensemble.labels)) for share in shares]
    finally:
        for share in shares:
            share.run.leave()
    members = tuple(_outcomes(ensemble, chunks))
    record.chunks, record.members = chunks, members
    _check_quorum(ensemble, members, quorum)
    return FanOut(members, _overlap(chunks), *_queue_and_inference(asked, chunks))


def _chunk(share: Share, classes: int) -> Chunk:
    runs = tuple(_of(share, member, classes) if member.done() else None for member in share.run.members)
    ended = time.perf_counter_ns() if None in runs else max(run.end_ns for run in runs if run)
    return Chunk(share.run.began_ns, ended, runs)


def _of(share: Share, member: asyncio.Future[MemberRun], classes: int) -> MemberRun:
    """A member's run with the logits of this share alone, unless these would make the average wrong."""
    run, wanted = member.result(), (share.run.size, classes)
    if run.logits is None:
        return run
    if run.logits.shape != wanted:
        error = f"gave logits {list(run.logits.shape)} where {list(wanted)} is wanted (batch, labels)"
        return replace(run, logits=None, error=error)
    logits = run.logits[share.rows]
    if not np.isfinite(logits).all():
        return replace(run, logits=None, error="logits are not finite")
    return replace(run, logits=logits)


def _queue_and_inference(asked: int, chunks: Sequence[Chunk]) -> tuple[int, int]:
    """Nanoseconds without and with a chunk at the members."""
    queue = inference = 0
    now = asked
    for chunk in chunks:
        queue += max(0, chunk.began_ns - now)
        inference += max(0, chunk.ended_ns - max(now, chunk.began_ns))
        now = max(now, chunk.ended_ns)
    return queue, inference


def _outcomes(ensemble: Ensemble, chunks: Sequence[Chunk]) -> list[MemberOutcome]:
    """Join each member's chunks; one that failed in any counts in none: all images are averaged alike."""
    origin = min((run.start_ns for chunk in chunks for run in chunk.runs if run), default=0)
    return [
        _outcome(member.name, [chunk.runs[index] for chunk in chunks], origin)
        for index, member in enumerate(ensemble.members)
    ]


def _outcome(name: str, runs: Sequence[MemberRun | None], origin: int) -> MemberOutcome:
    known = [run for run in runs if run is not None]
    errors = [run.error for run in known if run.error]
    if len(known) < len(runs):
        errors.append(LATE)
    logits = [run.logits for run in known if run.logits is not None]
    return MemberOutcome(
        name=name,
        device=known[0].device if known else None,
        start_ms=(known[0].start_ns - origin) / 1e6 if known else None,
        end_ms=(known[-1].end_ns - origin) / 1e6 if known else None,
        logits=None if errors else np.concatenate(logits),
        error=errors[0] if errors else None,
    )


def _check_quorum(ensemble: Ensemble, members: Sequence[MemberOutcome], quorum: int) -> None:
    failed = {member.name: member.error for member in members if member.error}
    answered = len(members) - len(failed)
    if answered >= quorum:
        return
    text = (
        f"{ensemble.name}: {answered} of {len(members)} members answered, {quorum} needed ("
        + "; ".join(f"{name}: {error}" for name, error in failed.items())
        + ")"
    )
    raise DeadlineError(text) if LATE in failed.values() else NoQuorumError(text)


def _overlap(chunks: Sequence[Chunk]) -> float:
    busy = span = 0
    for chunk in chunks:
        runs = [run for run in chunk.runs if run is not None]
        busy += sum(run.end_ns - run.start_ns for run in runs)
        span += max(run.end_ns for run in runs) - min(run.start_ns for run in runs)
    return busy / span
