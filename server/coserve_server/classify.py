"""The transport-free core: from encoded images to an ensemble's combined answer."""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from coserve_server.combine import Combined, combine
from coserve_server.engines.base import Batch, Engine
from coserve_server.errors import (
    BadImageError,
    DeadlineError,
    InvalidParametersError,
    OverloadedError,
    StartupError,
    TooManyImagesError,
    UnknownModelError,
)
from coserve_server.fan_out import MemberOutcome, fan_out
from coserve_server.images import EncodedImage, Preprocessing, decode, preprocess
from coserve_server.repository import Ensemble
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
    """

    ensemble: Ensemble
    members: tuple[MemberOutcome, ...]
    overlap: float
    combined: Combined
    timings: Timings


class Classifier:
    """Answers classification requests with the ensembles of one engine."""

    def __init__(self, engine: Engine, settings: Settings, cores: int) -> None:
        """Take over the engine; at most `cores` images are decoded at once.

        Raises:
            StartupError: the default model is not served.
        """
        self.engine, self.settings = engine, settings
        if settings.default_model is not None and settings.default_model not in engine.ensembles:
            raise StartupError(f"default model {settings.default_model!r} is not served; {self._choice()}")
        self._preparing = ThreadPoolExecutor(cores, "prepare")
        self._requests = 0

    @property
    def ensembles(self) -> Mapping[str, Ensemble]:
        """What is served, by name."""
        return self.engine.ensembles

    def ensemble(self, name: str | None) -> Ensemble:
        """The ensemble of that name; with None the default, or the only one.

        Raises:
            UnknownModelError: it is not served.
            InvalidParametersError: no name, no default, and several are served.
        """
        name = name if name is not None else self.settings.default_model
        if name is None and len(self.ensembles) == 1:
            (name,) = self.ensembles
        if name is None:
            raise InvalidParametersError(f"model: no name given and several are served; {self._choice()}")
        if name not in self.ensembles:
            raise UnknownModelError(f"model {name!r} is not served; {self._choice()}")
        return self.ensembles[name]

    def quorum(self, ensemble: Ensemble) -> int:
        """How many of the ensemble's members must answer."""
        size = len(ensemble.members)
        return min(self.settings.min_members or size, size)

    def ready(self, ensemble: Ensemble) -> bool:
        """Whether enough members are loaded and warm."""
        return len(self.engine.ready_members(ensemble)) >= self.quorum(ensemble)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count a request while it is in progress, from before its body is read.

        Raises:
            OverloadedError: too many are.
        """
        if self._requests >= self.settings.max_requests:
            raise OverloadedError(f"{self._requests} requests are in progress, as many as are allowed")
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def classify(self, ensemble: Ensemble, images: Sequence[EncodedImage]) -> Classification:
        """Classify images, all with the same members.

        Raises:
            InvalidParametersError, TooManyImagesError: there is no image, or too many.
            BadImageError: one cannot be decoded; the text says which. No image is classified then.
            DeadlineError, NoQuorumError: too few members answered.
        """
        began = time.perf_counter_ns()
        expires = asyncio.get_running_loop().time() + self.settings.deadline_ms / 1000
        self._check_count(len(images))
        batch, decode_ms, preprocess_ms = await self._prepare(ensemble.preprocessing, images, expires)
        fan = await fan_out(self.engine, ensemble, batch, self.quorum(ensemble), expires)
        combining = time.perf_counter_ns()
        combined = _combine(ensemble, fan.members)
        ended = time.perf_counter_ns()
        timings = Timings(
            decode=decode_ms,
            preprocess=preprocess_ms,
            queue=fan.queue_ms,
            inference=fan.inference_ms,
            combine=(ended - combining) / 1e6,
            total=(ended - began) / 1e6,
        )
        return Classification(ensemble, fan.members, fan.overlap, combined, timings)

    async def close(self) -> None:
        """Free the engine and the threads."""
        self._preparing.shutdown(cancel_futures=True)
        await self.engine.close()

    def _check_count(self, count: int) -> None:
        if count == 0:
            raise InvalidParametersError("the request has no image")
        if count > self.settings.max_images:
            raise TooManyImagesError(f"{count} images, more than the {self.settings.max_images} allowed")

    async def _prepare(
        self, how: Preprocessing, images: Sequence[EncodedImage], expires: float
    ) -> tuple[Batch, float, float]:
        """Decode and preprocess off the event loop: the batch, and milliseconds spent on each."""
        loop, limit = asyncio.get_running_loop(), self.settings.max_pixels
        jobs = [
            loop.run_in_executor(self._preparing, _prepare, image, index, how, limit)
            for index, image in enumerate(images)
        ]
        try:
            prepared = await asyncio.wait_for(asyncio.gather(*jobs), expires - loop.time())
        except asyncio.TimeoutError as error:
            raise DeadlineError("the images were not decoded before the deadline") from error
        finally:
            for job in jobs:
                job.cancel()
        tensors, decode_ms, preprocess_ms = zip(*prepared, strict=True)
        return np.stack(tensors), sum(decode_ms), sum(preprocess_ms)

    def _choice(self) -> str:
        return f"choose from {', '.join(self.ensembles)}"


def _prepare(
    image: EncodedImage, index: int, how: Preprocessing, max_pixels: int
) -> tuple[Batch, float, float]:
    began = time.perf_counter_ns()
    try:
        decoded = decode(image.data, max_pixels)
        halfway = time.perf_counter_ns()
        tensor = preprocess(decoded, how, max_pixels)
    except BadImageError as error:
        name = f"image {index}" + (f" ({image.filename})" if image.filename else "")
        raise BadImageError(f"{name}: {error}") from error
    return tensor, (halfway - began) / 1e6, (time.perf_counter_ns() - halfway) / 1e6


def _combine(ensemble: Ensemble, members: Sequence[MemberOutcome]) -> Combined:
    answered = [
        (outcome.logits, member.weight)
        for outcome, member in zip(members, ensemble.members, strict=True)
        if outcome.logits is not None
    ]
    logits, weights = zip(*answered, strict=True)
    return combine(np.stack(logits), np.array(weights))
