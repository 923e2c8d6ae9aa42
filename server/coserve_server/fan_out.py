"""From a batch to every member's logits: chunks, turns, the deadline, and the timeline."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from coserve_server.engines.base import Batch, Engine, MemberRun
from coserve_server.ensembles import Ensemble
from coserve_server.errors import DeadlineError, NoQuorumError

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
        chunks: what ran, one after another.
    """

    members: tuple[MemberOutcome, ...]
    overlap: float
    chunks: "tuple[Chunk, ...]"

    @property
    def queue_ms(self) -> float:
        """Spent waiting for the engine's turn."""
        return sum(chunk.queue_ns for chunk in self.chunks) / 1e6

    @property
    def inference_ms(self) -> float:
        """From handing over to the last answer."""
        return sum(chunk.inference_ns for chunk in self.chunks) / 1e6


@dataclass(frozen=True)
class Chunk:
    """Up to `max_batch_size` images that went to the members together.

    Attributes:
        size: how many images.
        asked_ns, began_ns, ended_ns: when the engine was asked, when it handed the images over, and when the
            last answer came; on the clock of `time.perf_counter_ns`.
        runs: in the ensemble's order; None of a member that did not answer in time.
    """

    size: int
    asked_ns: int
    began_ns: int
    ended_ns: int
    runs: tuple[MemberRun | None, ...]

    @property
    def queue_ns(self) -> int:
        """Spent waiting for the engine's turn."""
        return self.began_ns - self.asked_ns

    @property
    def inference_ns(self) -> int:
        """From handing over to the last answer."""
        return self.ended_ns - self.began_ns


async def fan_out(
    engine: Engine,
    ensemble: Ensemble,
    batch: Batch,
    quorum: int,
    expires: float,
    ran: Callable[[Chunk], None] = lambda _: None,
) -> FanOut:
    """Run a batch through all members, at most `max_batch_size` images at a time.

    A continuous batcher will stand between this and `Engine.start`: here one request is one batch.

    Args:
        batch: FP32 `[N, 3, H, W]`, N at least 1.
        quorum: members that must answer.
        expires: when to stop waiting, on the clock of `loop.time()`.
        ran: is told of every chunk, also where too few members answered.

    Raises:
        DeadlineError: fewer than `quorum` members answered in time.
        NoQuorumError: so many members failed that fewer than `quorum` have logits.
    """
    chunks: list[Chunk] = []
    for start in range(0, len(batch), ensemble.max_batch_size):
        chunks.append(await _run(engine, ensemble, batch[start : start + ensemble.max_batch_size], expires))
        ran(chunks[-1])
        members = tuple(_outcomes(ensemble, chunks))
        _check_quorum(ensemble, members, quorum)
    return FanOut(members, _overlap(chunks), tuple(chunks))


async def _run(engine: Engine, ensemble: Ensemble, batch: Batch, expires: float) -> Chunk:
    loop = asyncio.get_running_loop()
    asked = time.perf_counter_ns()
    try:
        futures = await engine.start(ensemble, batch, expires)
    except asyncio.TimeoutError as error:
        raise DeadlineError(f"{ensemble.name} did not get its turn before the deadline") from error
    began = time.perf_counter_ns()
    try:
        await asyncio.wait(futures, timeout=max(0, expires - loop.time()))
        runs = tuple(future.result() if future.done() else None for future in futures)
    finally:
        for future in futures:
            future.cancel()
    ended = time.perf_counter_ns()
    shape = (len(batch), len(ensemble.labels))
    checked = tuple(_checked(run, shape) for run in runs)
    return Chunk(len(batch), asked, began, ended, checked)


def _checked(run: MemberRun | None, shape: tuple[int, int]) -> MemberRun | None:
    """Refuse logits that would make the average wrong."""
    if run is None or run.logits is None:
        return run
    if run.logits.shape != shape:
        error = f"gave logits {list(run.logits.shape)} where {list(shape)} is wanted (batch, labels)"
    elif not np.isfinite(run.logits).all():
        error = "logits are not finite"
    else:
        return run
    return replace(run, logits=None, error=error)


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
