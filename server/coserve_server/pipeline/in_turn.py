"""Asks members in turn for a request's images, until each image's answer is confident enough."""

import asyncio
import time

import numpy as np

from coserve_server.engines.base import Images
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import DeadlineError
from coserve_server.observability.record import Record
from coserve_server.outcomes import MemberRun
from coserve_server.pipeline.batching import Batcher
from coserve_server.pipeline.early_stopping.rows import StagedRequest
from coserve_server.pipeline.early_stopping.rule import StoppingRule
from coserve_server.pipeline.fan_out import queue_and_inference, too_few


async def ask_in_turn(
    record: Record,
    batcher: Batcher,
    ensemble: Ensemble,
    images: Images,
    rule: StoppingRule,
    quorum: int,
    deadline_ns: int,
) -> None:
    """Give each image to one member after another until it is sure, and note in the record what they did.

    A member that fails is replaced by the next one, and so is one that has no answer after half of the time.

    Args:
        record: as in `fan_out`; the rule, `answered` and `stopped_early` are noted too.
        images: FP32 `[N, 3, H, W]`, N at least 1.
        quorum: number of members that must answer for an image that is not sure.
        deadline_ns: when to stop waiting, on the clock of `time.perf_counter_ns`.

    Raises:
        DeadlineError: for some image, too few members answered in time.
        NoQuorumError: so many members failed that fewer than `quorum` gave logits for some image.
    """
    record.stop_confidence = rule.confidence
    record.stop_loss = rule.loss
    request = StagedRequest(record, images)
    left_s = (deadline_ns - time.perf_counter_ns()) / 1e9
    if left_s <= 0:
        raise DeadlineError(f"{ensemble.name} did not get its turn before the deadline")
    line = batcher.stage(ensemble, rule)
    line.add(request)
    timer = asyncio.get_running_loop().call_later(left_s / 2, line.overtake, request)
    try:
        await asyncio.wait([request.done], timeout=left_s)
        timed_out = not request.done.done()
        if not timed_out:
            request.done.result()
        request.note_late()
        _note(record, ensemble, request)
        for row in request.rows:
            if not row.sure and len(row.logits) < quorum:
                raise too_few(ensemble, len(row.logits), record.members, quorum, late=timed_out)
    finally:
        timer.cancel()
        line.withdraw(request)
        # They refer to the request: in a cycle, its images would stay until the garbage collector comes.
        request.rows.clear()


def _note(record: Record, ensemble: Ensemble, request: StagedRequest) -> None:
    size = len(ensemble.members)
    shares = sorted((share for _, share in request.shares), key=lambda share: share.batch.began_ns)
    record.shares = shares
    record.members = [_join(ensemble, request, member) for member in range(size)]
    record.answered = [tuple(sorted(row.logits)) for row in request.rows]
    record.stopped_early = sum(row.sure for row in request.rows)
    record.lacks_members = any(not row.sure and len(row.logits) < size for row in request.rows)
    record.queue_ns, record.inference_ns = queue_and_inference(record.prepared_ns, shares)


def _join(ensemble: Ensemble, request: StagedRequest, member: int) -> MemberRun:
    """Return what a member did for the request as a whole.

    Its logits are NaN for images that it did not answer. Without logits or failure, it was not needed.
    """
    name = ensemble.members[member].name
    runs = [share.runs[0] for index, share in request.shares if index == member]
    if not runs:
        now = time.perf_counter_ns()
        return MemberRun(name, None, now, now, None)
    ended = [run for run in runs if not run.late] or runs
    return MemberRun(
        name=name,
        device=ended[0].device,
        start_ns=min(run.start_ns for run in ended),
        end_ns=max(run.end_ns for run in ended),
        logits=_gather(request, member, len(ensemble.labels)),
        failure=request.failures.get(member),
    )


def _gather(request: StagedRequest, member: int, classes: int) -> Images | None:
    answered = [row for row in request.rows if member in row.logits]
    if not answered:
        return None
    logits = np.full((len(request.rows), classes), np.nan, np.float32)
    logits[[row.index for row in answered]] = [row.logits[member] for row in answered]
    return logits
