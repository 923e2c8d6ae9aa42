"""The transport-free core: from encoded images to an ensemble's combined answer."""

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from coserve_server.catalogue.catalogue import Catalogue
from coserve_server.engines.base import Batch, Engine
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.errors import (
    InvalidParametersError,
    TooManyImagesError,
)
from coserve_server.images.decode import EncodedImage
from coserve_server.observability.metrics import Metrics
from coserve_server.observability.record import current
from coserve_server.observability.statistics import Statistics
from coserve_server.pipeline.admission import Admission
from coserve_server.pipeline.batching import Batcher, BatchRun
from coserve_server.pipeline.combine import Combined, combine
from coserve_server.pipeline.fan_out import MemberOutcome, fan_out
from coserve_server.pipeline.preparation import Preparation
from coserve_server.settings import Settings


@dataclass(frozen=True)
class Timings:
    """Milliseconds; decode and preprocess are summed over the images, which are prepared in parallel."""

    decode: float
    preprocess: float
    queue: float
    inference: float
    combine: float
    total: float


@dataclass(frozen=True)
class Classification:
    """The answer to one request.

    Attributes:
        members: in the ensemble's order; those without an error were combined.
        combined: one row per image.
        measured_top1: share of right first answers that these members together reached on a test set; None
            where nobody measured it.
    """

    ensemble: Ensemble
    members: tuple[MemberOutcome, ...]
    overlap: float
    combined: Combined
    measured_top1: float | None
    timings: Timings


class Classifier:
    """Answers classification requests with the ensembles of one engine."""

    def __init__(self, engine: Engine, settings: Settings, cores: int) -> None:
        """Take over the engine; at most `cores` images are decoded at once."""
        self.engine, self.settings = engine, settings
        self.statistics = Statistics()
        self.metrics = Metrics()
        self.catalogue = Catalogue(engine, settings)
        self._batcher = Batcher(engine, self._ran)
        self._preparation = Preparation(cores, settings.max_pixels)
        self._admission = Admission(settings.max_requests, settings.deadline_ms / 1000)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request while it is in progress, from before its body is read.

        Raises:
            OverloadedError: too many are.
        """
        current().classifies = True
        with self._admission.admitted():
            yield

    async def classify(
        self, ensemble: Ensemble, images: Sequence[EncodedImage], began: int, deadline_ms: float | None = None
    ) -> Classification:
        """Classify images, all with the same members.

        Args:
            began: when the request was there, on the clock of `time.perf_counter_ns`; time counts from then.
            deadline_ms: milliseconds to do it in, where they are fewer than the settings'.

        Raises:
            InvalidParametersError, TooManyImagesError: there is no image, or too many.
            BadImageError: one cannot be decoded; the text says which. No image is classified then.
            DeadlineError, NoQuorumError: too few members answered.
        """
        with self._failures_counted(ensemble, began):
            expires = self._expires(began, deadline_ms)
            self._check_count(len(images))
            batch, decode_ms, preprocess_ms = await self._preparation.prepare(
                images, ensemble.preprocessing, expires
            )
            return await self._answer(ensemble, batch, began, expires, decode_ms, preprocess_ms)

    async def infer(
        self, ensemble: Ensemble, batch: Batch, began: int, deadline_ms: float | None = None
    ) -> Classification:
        """Classify images that are preprocessed.

        Args:
            batch: finite, FP32 `[N, 3, H, W]` as the ensemble's preprocessing makes it.
            began: when the request was there, on the clock of `time.perf_counter_ns`; time counts from then.
            deadline_ms: milliseconds to do it in, where they are fewer than the settings'.

        Raises:
            InvalidParametersError, TooManyImagesError: there is no image, or too many.
            DeadlineError, NoQuorumError: too few members answered.
        """
        with self._failures_counted(ensemble, began):
            self._check_count(len(batch))
            decode_ms = (time.perf_counter_ns() - began) / 1e6
            return await self._answer(
                ensemble, batch, began, self._expires(began, deadline_ms), decode_ms, preprocess_ms=0.0
            )

    @property
    def in_flight(self) -> int:
        """Classification requests in progress."""
        return self._admission.in_progress

    async def close(self) -> None:
        """Free the engine and the threads."""
        self._preparation.close()
        self._batcher.close()
        await self.engine.close()

    def _ran(self, ensemble: Ensemble, batch: BatchRun) -> None:
        self.statistics.ran(ensemble, batch)
        self.metrics.batch(ensemble, batch)

    def _expires(self, began: int, deadline_ms: float | None) -> float:
        """When to stop, on the clock of `loop.time()`."""
        deadline_ms = min(deadline_ms or math.inf, self.settings.deadline_ms)
        passed_ms = (time.perf_counter_ns() - began) / 1e6
        return asyncio.get_running_loop().time() + (deadline_ms - passed_ms) / 1000

    @contextmanager
    def _failures_counted(self, ensemble: Ensemble, began: int) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.statistics.of(ensemble).fail.add(time.perf_counter_ns() - began)
            raise

    async def _answer(
        self,
        ensemble: Ensemble,
        batch: Batch,
        began: int,
        expires: float,
        decode_ms: float,
        preprocess_ms: float,
    ) -> Classification:
        prepared = time.perf_counter_ns()
        fan = await fan_out(self._batcher, ensemble, batch, self.catalogue.quorum(ensemble), expires)
        combining = time.perf_counter_ns()
        used = [index for index, member in enumerate(fan.members) if member.logits is not None]
        combined = _combine(ensemble, fan.members, used)
        ended = time.perf_counter_ns()
        record = current()
        record.images, record.queue_ns, record.combined_ns = len(batch), fan.queue_ns, (combining, ended)
        self.statistics.of(ensemble).answered(
            len(batch),
            total_ns=ended - began,
            queue_ns=fan.queue_ns,
            input_ns=prepared - began,
            infer_ns=fan.inference_ns,
            output_ns=ended - combining,
        )
        timings = Timings(
            decode=decode_ms,
            preprocess=preprocess_ms,
            queue=fan.queue_ns / 1e6,
            inference=fan.inference_ns / 1e6,
            combine=(ended - combining) / 1e6,
            total=(ended - began) / 1e6,
        )
        measured_top1 = ensemble.accuracy.top1(used, len(ensemble.members))
        return Classification(ensemble, fan.members, fan.overlap, combined, measured_top1, timings)

    def _check_count(self, count: int) -> None:
        if count == 0:
            raise InvalidParametersError("the request has no image")
        if count > self.settings.max_images:
            raise TooManyImagesError(f"{count} images, more than the {self.settings.max_images} allowed")


def _combine(ensemble: Ensemble, members: Sequence[MemberOutcome], used: Sequence[int]) -> Combined:
    """Average the members whose indices are `used`, all that have logits."""
    logits = np.stack([member.logits for member in members if member.logits is not None])
    weights = np.array([ensemble.members[index].weight for index in used])
    return combine(logits, weights, ensemble.calibration)
