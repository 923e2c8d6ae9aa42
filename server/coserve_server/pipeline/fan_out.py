"""Fans a request's images out to all members: batches, the deadline, the quorum."""

import asyncio
import time
from collections.abc import Sequence

from coserve_server.engines.base import Images
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import DeadlineError, NoQuorumError
from coserve_server.observability.record import Record
from coserve_server.outcomes import LATE, MemberRun, Share, join
from coserve_server.pipeline.batching import Batcher


async def fan_out(
    record: Record, batcher: Batcher, ensemble: Ensemble, images: Images, quorum: int, deadline_ns: int
) -> None:
    """Run images through all members, and note in the record what they did.

    Args:
        record: `prepared_ns` says when waiting began; `shares`, `members`, `lacks_members`, `queue_ns` and
            `inference_ns` are set, also if too few members answer.
        images: FP32 `[N, 3, H, W]`, N at least 1.
        quorum: number of members that must answer.
        deadline_ns: when to stop waiting, on the clock of `time.perf_counter_ns`.

    Raises:
        DeadlineError: fewer than `quorum` members answered in time.
        NoQuorumError: so many members failed that fewer than `quorum` gave logits.
    """
    shares = await batcher.start(record, ensemble, images, deadline_ns)
    try:
        finished = [share.batch.finished for share in shares]
        await asyncio.wait(finished, timeout=max(0, deadline_ns - time.perf_counter_ns()) / 1e9)
        for share in shares:
            share.settle(len(ensemble.labels))
    finally:
        for share in shares:
            share.batch.release()
    record.shares = shares
    record.members = [join([share.runs[index] for share in shares]) for index in range(len(ensemble.members))]
    record.queue_ns, record.inference_ns = queue_and_inference(record.prepared_ns, shares)
    failed = [member for member in record.members if member.failure]
    record.lacks_members = bool(failed)
    answered = len(record.members) - len(failed)
    if answered < quorum:
        late = any(member.late for member in failed)
        raise too_few(ensemble, answered, record.members, quorum, late=late)


def queue_and_inference(prepared_ns: int, shares: Sequence[Share]) -> tuple[int, int]:
    """Return the nanoseconds in which no batch was at the members, and those in which one was."""
    queue = 0
    inference = 0
    now = prepared_ns
    for share in shares:
        began = share.began_ns
        queue += max(0, began - now)
        inference += max(0, share.ended_ns - max(now, began))
        now = max(now, share.ended_ns)
    return queue, inference


def too_few(
    ensemble: Ensemble, answered: int, members: Sequence[MemberRun], quorum: int, *, late: bool
) -> DeadlineError | NoQuorumError:
    """Return the error of a request that too few members answered.

    Args:
        answered: number of members that answered.
        members: what each member did; the text has their failures.
        late: whether more members might have answered after the deadline.
    """
    failed = [f"{member.name}: {member.failure.reason}" for member in members if member.failure]
    reasons = "; ".join(failed) or LATE
    text = f"{ensemble.name}: {answered} of {len(members)} members answered, {quorum} needed ({reasons})"
    return DeadlineError(text) if late else NoQuorumError(text)
