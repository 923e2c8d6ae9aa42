"""Mirrors requests: another ensemble gets the same images, while nobody waits for anything else."""

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coserve_server.catalogue.catalogue import Catalogue
from coserve_server.engines.base import Engine, Images
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import RequestError
from coserve_server.observability.mirroring import Comparison, Comparisons
from coserve_server.observability.record import Record, no_request
from coserve_server.outcomes import MemberRun
from coserve_server.pipeline.batching import Batcher
from coserve_server.pipeline.combine import combine
from coserve_server.pipeline.fan_out import fan_out

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES = 64 * 2**20
"""Limit on the images and answers that wait for an idle moment."""
IDLE_S = 0.005
"""Time without a client's request after which the server counts as idle: the last answer is on its way."""


@dataclass(frozen=True)
class _Copy:
    """A client's request that has been answered.

    Attributes:
        images: FP32 `[N, 3, H, W]`.
        probabilities: the answer, `[N, C]`.
        inference_ns: how long the client's ensemble had the images.
        expires_ns: when to give up, on the clock of `time.perf_counter_ns`.
    """

    ensemble: Ensemble
    images: Images
    probabilities: NDArray[np.float64]
    inference_ns: int
    expires_ns: int

    @property
    def nbytes(self) -> int:
        """Return the memory it takes."""
        return self.images.nbytes + self.probabilities.nbytes


class Mirror:
    """Runs copies of answered requests through another ensemble, one at a time.

    They run only while no request of a client is in progress. The next one stops them at once, and they are
    tried again, until their deadline.

    Attributes:
        comparisons: what came of it.
    """

    def __init__(
        self,
        engine: Engine,
        catalogue: Catalogue,
        target: tuple[str, str | None],
        share: float,
        patience_ns: int,
    ) -> None:
        """Mirror a share of the requests.

        Args:
            target: the mirror's name, and its version; None for the newest.
            share: above 0, at most 1.
            patience_ns: time until a copy is dropped.
        """
        self.comparisons: Comparisons = defaultdict(Comparison)
        self._catalogue = catalogue
        self._target = target
        self._share = share
        self._patience_ns = patience_ns
        self._due = 0.0
        # Apart from the clients': their batches never wait for the mirror's, nor have images of it.
        self._batcher = Batcher(engine)
        self._waiting: deque[_Copy] = deque()
        self._waiting_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._run: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The mirror as in the settings."""
        name, version = self._target
        return name if version is None else f"{name}@{version}"

    @property
    def served(self) -> bool:
        """Whether the mirror is served now."""
        try:
            self._catalogue.ensemble(*self._target)
        except RequestError:
            return False
        return True

    def offer(
        self, record: Record, ensemble: Ensemble, images: Images, probabilities: NDArray[np.float64]
    ) -> None:
        """Take a share of the requests that have been answered, except the mirror's own.

        Args:
            images: FP32 `[N, 3, H, W]`; kept, so nobody may change them.
            probabilities: the answer, `[N, C]`; likewise.
        """
        found = self._find(ensemble)
        if isinstance(found, Ensemble) and _is_same(found, ensemble):
            return
        self._due += self._share
        if self._due < 1:
            return
        self._due -= 1
        expires_ns = time.perf_counter_ns() + self._patience_ns
        copy = _Copy(ensemble, images, probabilities, record.inference_ns, expires_ns)
        if isinstance(found, str):
            self._count(ensemble, found)
        elif copy.nbytes + self._waiting_bytes > MAX_WAITING_BYTES:
            self._count(ensemble, "busy")
        else:
            self._waiting.append(copy)
            self._waiting_bytes += copy.nbytes

    def pause(self) -> None:
        """Stop: a client's request has arrived."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._run is not None:
            self._run.cancel()

    def resume(self) -> None:
        """Go on: no client's request is in progress."""
        if self._waiting:
            self._timer = asyncio.get_running_loop().call_later(IDLE_S, self._start, context=no_request())

    async def close(self) -> None:
        """Stop for good."""
        self.pause()
        if self._run is not None:
            await asyncio.wait({self._run})
        self._batcher.close()

    def _start(self) -> None:
        self._timer = None
        # One that was told to stop may not have ended yet.
        if self._run is None or self._run.done():
            self._run = asyncio.get_running_loop().create_task(self._work())
        else:
            self.resume()

    async def _work(self) -> None:
        """Answer the copies that wait; each stays in the queue until it has been."""
        while self._waiting:
            copy = self._waiting[0]
            late = time.perf_counter_ns() >= copy.expires_ns
            outcome = "busy" if late else await self._answer(copy)
            self._count(copy.ensemble, outcome)
            self._waiting.popleft()
            self._waiting_bytes -= copy.nbytes

    async def _answer(self, copy: _Copy) -> str:
        """Run a copy through the mirror, compare the answers, and return the outcome."""
        mirror = self._find(copy.ensemble)
        if isinstance(mirror, str):
            return mirror
        now = time.perf_counter_ns()
        record = Record(began_ns=now, received_ns=now, prepared_ns=now)
        quorum = self._catalogue.quorum(mirror)
        try:
            await fan_out(record, self._batcher, mirror, copy.images, quorum, copy.expires_ns)
            agreements = await asyncio.to_thread(_count_agreements, mirror, record.members, copy)
        # Whatever is wrong with the mirror must not keep the next copies waiting.
        except Exception as error:
            logger.warning("mirror %s: %s", self.name, error, exc_info=not isinstance(error, RequestError))
            return "failed"
        comparison = self._comparison(copy.ensemble)
        comparison.images += len(copy.images)
        comparison.agreements += agreements
        comparison.answer.observe(copy.inference_ns / 1e9)
        comparison.mirror.observe(record.inference_ns / 1e9)
        return "answered"

    def _find(self, ensemble: Ensemble) -> Ensemble | str:
        """Return the mirror as it is served now, or why it cannot answer what the ensemble has answered."""
        try:
            mirror = self._catalogue.ensemble(*self._target)
        except RequestError:
            return "missing"
        same = (mirror.labels, mirror.preprocessing) == (ensemble.labels, ensemble.preprocessing)
        return mirror if same else "incomparable"

    def _comparison(self, ensemble: Ensemble) -> Comparison:
        return self.comparisons[ensemble.name, ensemble.version]

    def _count(self, ensemble: Ensemble, outcome: str) -> None:
        self._comparison(ensemble).outcomes[outcome] += 1


def _is_same(one: Ensemble, other: Ensemble) -> bool:
    """Return whether clients see one model; a member alone is a new object at every look-up."""
    return (one.name, one.version) == (other.name, other.version)


def _count_agreements(mirror: Ensemble, runs: Sequence[MemberRun], copy: _Copy) -> int:
    """Return for how many images both answers have the same most probable class."""
    used: list[Any] = [run.logits for run in runs if run.logits is not None]
    weights = [one.weight for one, run in zip(mirror.members, runs, strict=True) if run.logits is not None]
    combined = combine(np.stack(used), np.array(weights), mirror.calibration)
    return int((combined.probabilities.argmax(axis=1) == copy.probabilities.argmax(axis=1)).sum())
