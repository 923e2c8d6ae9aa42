"""Images that members answer one after another, and the requests that they belong to."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from coserve_server.engines.base import Batch, Images, Part, gather
from coserve_server.observability.record import Record
from coserve_server.outcomes import BatchRun, Failure, MemberRun, Share
from coserve_server.pipeline.combine import Floats


@dataclass(eq=False, slots=True)
class Row:
    """One image of a request.

    Attributes:
        index: its place in the request.
        asked: indices of the members that were given the image.
        runs: the batches with the image that have not ended, by member; two only if one of them is late.
        logits: answers by member, `[C]` each.
        total: weighted sum of the answers, `[C]`.
        waits: whether it waits for its next member.
        finished: whether it needs no further member, or its request has ended.
        sure: whether it stopped early.
    """

    request: "StagedRequest"
    index: int
    asked: set[int] = field(default_factory=set)
    runs: dict[int, BatchRun] = field(default_factory=dict)
    logits: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    total: Floats | None = None
    waits: bool = False
    finished: bool = False
    sure: bool = False

    def add(self, member: int, logits: NDArray[np.float32], weight: float) -> None:
        """Take a member's answer."""
        self.logits[member] = logits
        weighted = logits * np.float64(weight)
        self.total = weighted if self.total is None else self.total + weighted


class StagedRequest:
    """A request whose images members answer one after another.

    Attributes:
        images: FP32 `[N, 3, H, W]`.
        done: done when every image is finished; an exception if the engine has a bug.
        shares: the request's rows of its batches, each with its member's index; none of a batch that still
            runs until `note_late`.
        failures: why a member gave no logits for some of the images, by member.
    """

    def __init__(self, record: Record, images: Images) -> None:
        self.record = record
        self.images = images
        self.rows = [Row(self, index) for index in range(len(images))]
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.shares: list[tuple[int, Share]] = []
        self.failures: dict[int, Failure] = {}
        self._unfinished = len(self.rows)

    def take(self, member: int, share: Share, classes: int) -> MemberRun:
        """Take a member's answer to some of the images, and return it."""
        share.settle(classes)
        self._note(member, share)
        return share.runs[0]

    def note_late(self) -> None:
        """Note the members that still have some of the images: they are late."""
        now = time.perf_counter_ns()
        running = {run: member for row in self.rows for member, run in row.runs.items()}
        for run, member in running.items():
            self._note(member, Share(run, [], [run.make_late(run.names[0], now)], now))

    def _note(self, member: int, share: Share) -> None:
        self.shares.append((member, share))
        if failure := share.runs[0].failure:
            self.failures[member] = failure

    def finish(self, row: Row) -> None:
        """Note that an image needs no further member, and stop batches that nobody else wants."""
        row.finished = True
        row.waits = False
        for run in row.runs.values():
            run.release()
        row.runs.clear()
        self._unfinished -= 1
        if self._unfinished == 0 and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Exception) -> None:
        """End with an error, unless it has ended."""
        if not self.done.done():
            self.done.set_exception(error)


def by_request(rows: Sequence[Row]) -> Iterator[tuple[StagedRequest, list[int]]]:
    """Yield the requests of a batch's rows, each with the positions of its rows in the batch."""
    positions: dict[StagedRequest, list[int]] = {}
    for position, row in enumerate(rows):
        positions.setdefault(row.request, []).append(position)
    yield from positions.items()


def gather_rows(rows: Sequence[Row]) -> Images | Batch:
    """Return the images of some rows; adjoining ones of one request are not copied."""
    parts: list[Part] = []
    for request, group in groupby(rows, lambda row: row.request):
        indices = [row.index for row in group]
        first = indices[0]
        whole = slice(first, first + len(indices))
        adjoining = indices == list(range(whole.start, whole.stop))
        parts.append((request.images, whole if adjoining else indices))
    return gather(parts)
