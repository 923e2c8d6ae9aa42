"""The transport-free core: from encoded images to an ensemble's combined answer."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from coserve_server.catalogue.catalogue import Catalogue
from coserve_server.engines.base import Engine, Images
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import InvalidParametersError, TooManyImagesError
from coserve_server.observability.metrics import Metrics
from coserve_server.observability.record import Record
from coserve_server.observability.statistics import Statistics
from coserve_server.outcomes import BatchRun, MemberRun, overlap
from coserve_server.pipeline.admission import Admission
from coserve_server.pipeline.batching import Batcher
from coserve_server.pipeline.combine import Combined, combine, combine_apart
from coserve_server.pipeline.early_stopping.rule import StoppingRule, StoppingRules
from coserve_server.pipeline.fan_out import fan_out
from coserve_server.pipeline.in_turn import ask_in_turn
from coserve_server.pipeline.mirror import Mirror
from coserve_server.pipeline.preparation import EncodedImage, Preparation
from coserve_server.settings import EarlyStop, Settings

INLINE_VALUES = 2**15
"""More logits, those of all members together, are combined on a thread."""


@dataclass(frozen=True)
class Timings:
    """Where a request's time went, in nanoseconds.

    Attributes:
        decode: summed over the images, which are prepared in parallel.
        preprocess: likewise.
        queue: waiting for the engine.
        inference: a batch with some of the images was at the members.
        combine: averaging the logits.
        total: from the complete body to the answer.
    """

    decode: int
    preprocess: int
    queue: int
    inference: int
    combine: int
    total: int


@dataclass(frozen=True)
class Classification:
    """The answer to one request.

    Attributes:
        members: in the ensemble's order; those with logits were combined.
        answered: for each image, the indices of the members that were combined, ascending.
        degraded: whether a member is missing that was needed.
        stopping: the rule by which images needed no further member; None if all members were needed.
        combined: one row per image.
        overlap: sum of the members' durations divided by the wall time; see `outcomes.overlap`.
        measured_top1: top-1 accuracy that these members together, or the rule, reached on a test set; None
            if unknown.
    """

    ensemble: Ensemble
    members: Sequence[MemberRun]
    answered: Sequence[tuple[int, ...]]
    degraded: bool
    stopping: StoppingRule | None
    overlap: float
    combined: Combined
    measured_top1: float | None
    timings: Timings


class Classifier:
    """Answers classification requests with the ensembles of one engine."""

    def __init__(self, engine: Engine, settings: Settings, cores: int) -> None:
        """Take over the engine; decode at most `cores` images at once."""
        self.engine = engine
        self.settings = settings
        self.statistics = Statistics()
        self.metrics = Metrics()
        self.catalogue = Catalogue(engine, settings)
        self._batcher = Batcher(engine, self._count_batch)
        self._preparation = Preparation(cores, settings.max_pixels, settings.max_request_pixels)
        self._admission = Admission(settings.max_requests, settings.deadline_ms / 1000)
        self._stopping = StoppingRules(settings)
        self.mirror = self._create_mirror()

    @contextmanager
    def admitted(self, record: Record) -> Iterator[None]:
        """Count a request while it is in progress, from before its body is read.

        Raises:
            OverloadedError: too many requests are in progress.
        """
        record.classifies = True
        with self._admission.admitted():
            if self.mirror is None:
                yield
                return
            self.mirror.pause()
            try:
                yield
            finally:
                if self._admission.in_progress == 1:
                    self.mirror.resume()

    async def classify(
        self,
        record: Record,
        ensemble: Ensemble,
        images: Sequence[EncodedImage],
        timeout_ns: int | None = None,
        early_stop: EarlyStop | None = None,
    ) -> Classification:
        """Classify images, all with the same members unless they stop early.

        Args:
            record: the request's; time counts from its `received_ns`.
            timeout_ns: limit on the answer's time, if it is below the settings' deadline.
            early_stop: when images stop early; None for the setting.

        Raises:
            InvalidParametersError, TooManyImagesError: there is no image, or too many, or the ensemble has no
                confidence to stop at.
            BadImageError: an image cannot be decoded; the text says which. No image is classified then.
            TooManyPixelsError: the images have too many pixels in total.
            DeadlineError, NoQuorumError: too few members answered.
        """
        with self._count_failures(record, ensemble):
            deadline_ns = self._deadline_ns(record, timeout_ns)
            self._check_count(len(images))
            stopping = self._stopping.find(ensemble, early_stop)
            tensor = await self._preparation.prepare(record, images, ensemble.preprocessing, deadline_ns)
            return await self._answer(record, ensemble, tensor, deadline_ns, stopping)

    async def infer(
        self,
        record: Record,
        ensemble: Ensemble,
        images: Images,
        timeout_ns: int | None = None,
        early_stop: EarlyStop | None = None,
    ) -> Classification:
        """Classify preprocessed images.

        Args:
            record: the request's; time counts from its `received_ns`.
            images: finite, FP32 `[N, 3, H, W]` as the ensemble's preprocessing makes it.
            timeout_ns: limit on the answer's time, if it is below the settings' deadline.
            early_stop: when images stop early; None for the setting.

        Raises:
            InvalidParametersError, TooManyImagesError: there is no image, or too many, or the ensemble has no
                confidence to stop at.
            DeadlineError, NoQuorumError: too few members answered.
        """
        with self._count_failures(record, ensemble):
            self._check_count(len(images))
            stopping = self._stopping.find(ensemble, early_stop)
            deadline_ns = self._deadline_ns(record, timeout_ns)
            return await self._answer(record, ensemble, images, deadline_ns, stopping)

    @property
    def in_flight(self) -> int:
        """Number of classification requests in progress."""
        return self._admission.in_progress

    async def close(self) -> None:
        """Free the engine and the threads."""
        if self.mirror is not None:
            await self.mirror.close()
        self._preparation.close()
        self._batcher.close()
        await self.engine.close()

    def _create_mirror(self) -> Mirror | None:
        if self.settings.mirrored is None:
            return None
        patience_ns = round(self.settings.deadline_ms * 1e6)
        share = self.settings.mirror_share
        return Mirror(self.engine, self.catalogue, self.settings.mirrored, share, patience_ns)

    def _count_batch(self, ensemble: Ensemble, run: BatchRun) -> None:
        members = run.outcomes()
        self.statistics.count_batch(ensemble, run, members)
        self.metrics.count_batch(ensemble, run.size, members)

    def _deadline_ns(self, record: Record, timeout_ns: int | None) -> int:
        """Return when to stop, on the clock of `time.perf_counter_ns`."""
        own = round(self.settings.deadline_ms * 1e6)
        return record.received_ns + (own if timeout_ns is None else min(timeout_ns, own))

    @contextmanager
    def _count_failures(self, record: Record, ensemble: Ensemble) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.statistics.get(ensemble).fail.add(time.perf_counter_ns() - record.received_ns)
            raise

    async def _answer(
        self,
        record: Record,
        ensemble: Ensemble,
        images: Images,
        deadline_ns: int,
        stopping: StoppingRule | None,
    ) -> Classification:
        record.images = len(images)
        record.prepared_ns = time.perf_counter_ns()
        quorum = self.catalogue.quorum(ensemble)
        if stopping is not None and not self._stops_now(ensemble, stopping, len(images)):
            stopping = None
        if stopping is None:
            await fan_out(record, self._batcher, ensemble, images, quorum, deadline_ns)
        else:
            await ask_in_turn(record, self._batcher, ensemble, images, stopping, quorum, deadline_ns)
        combining_ns = time.perf_counter_ns()
        used = [index for index, member in enumerate(record.members) if member.logits is not None]
        values = len(used) * len(images) * len(ensemble.labels)
        if values <= INLINE_VALUES:
            combined = _combine(ensemble, record, used)
        else:
            combined = await asyncio.to_thread(_combine, ensemble, record, used)
        ended_ns = time.perf_counter_ns()
        record.combined_ns = (combining_ns, ended_ns)
        timings = Timings(
            decode=sum(image.decoded_ns - image.began_ns for image in record.prepared),
            preprocess=sum(image.ended_ns - image.decoded_ns for image in record.prepared),
            queue=record.queue_ns,
            inference=record.inference_ns,
            combine=ended_ns - combining_ns,
            total=ended_ns - record.received_ns,
        )
        self.statistics.get(ensemble).count_answer(
            len(images),
            total_ns=timings.total,
            queue_ns=timings.queue,
            input_ns=record.prepared_ns - record.received_ns,
            infer_ns=timings.inference,
            output_ns=timings.combine,
        )
        if self.mirror is not None:
            self.mirror.offer(record, ensemble, images, combined.probabilities)
        return Classification(
            ensemble=ensemble,
            members=record.members,
            answered=record.answered or [tuple(used)] * len(images),
            degraded=record.degraded,
            stopping=stopping,
            overlap=overlap(share.runs for share in record.shares),
            combined=combined,
            measured_top1=_measured_top1(ensemble, record, used, stopping),
            timings=timings,
        )

    def _stops_now(self, ensemble: Ensemble, rule: StoppingRule, images: int) -> bool:
        """Return whether the rule applies: always, or while images have to wait for the engine."""
        return rule.always or images > ensemble.max_batch_size or self._batcher.busy(ensemble)

    def _check_count(self, count: int) -> None:
        if count == 0:
            raise InvalidParametersError("the request has no image")
        if count > self.settings.max_images:
            raise TooManyImagesError(f"{count} images, more than the {self.settings.max_images} allowed")


def _combine(ensemble: Ensemble, record: Record, used: Sequence[int]) -> Combined:
    """Average the members whose indices are `used`: all that have logits."""
    logits = np.stack([member.logits for member in record.members if member.logits is not None])
    weights = np.array([ensemble.members[index].weight for index in used])
    if not record.answered:
        return combine(logits, weights, ensemble.calibration)
    answered = [tuple(used.index(member) for member in members) for members in record.answered]
    return combine_apart(logits, answered, weights, ensemble.calibration)


def _measured_top1(
    ensemble: Ensemble, record: Record, used: Sequence[int], stopping: StoppingRule | None
) -> float | None:
    """Return the accuracy measured for how the answer was made; None if it was not."""
    if stopping is None:
        return ensemble.accuracy.top1(used, len(ensemble.members))
    return None if record.degraded else stopping.top1
