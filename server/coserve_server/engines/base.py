"""What serving asks of an engine."""

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coserve_server.ensembles.ensemble import Ensemble

Batch = NDArray[np.float32]
"""Preprocessed images, FP32 `[N, 3, H, W]`."""


@dataclass(frozen=True)
class MemberRun:
    """One batch through one member: either `logits` or `error` is None.

    Attributes:
        start_ns, end_ns: on the clock of `time.perf_counter_ns`, the same for all members.
        device: where it ran.
        logits: FP32, wanted `[N, C]`; the engine need not check shape or values.
        error: why there are no logits, in words fit for a user.
    """

    start_ns: int
    end_ns: int
    device: str
    logits: NDArray[np.float32] | None
    error: str | None = None


class Engine(Protocol):
    """Executes batches; one instance serves all ensembles of a repository."""

    @property
    def ensembles(self) -> Mapping[str, Ensemble]:
        """What it can run, by name; of several versions the newest."""

    def versions(self, name: str) -> Sequence[Ensemble]:
        """The versions of an ensemble that it can run, newest last; empty where there is no such ensemble."""

    @property
    def load_errors(self) -> Mapping[str, str]:
        """Why a model, or its newest state, could not be loaded, by name; an older one may be served."""

    def ready_members(self, ensemble: Ensemble) -> frozenset[str]:
        """Names of the members that are loaded, and not stuck with a batch nobody waits for any more."""

    def faults(self) -> list[str]:
        """What keeps the engine from knowing or serving an ensemble it should, in words fit for a user."""

    def absence(self, name: str | None) -> str | None:
        """Why an ensemble that may exist is not served just now; None where there is no such ensemble.

        Args:
            name: of the ensemble; None for any.
        """

    def describe(self, ensemble: Ensemble) -> str:
        """Where and how the ensemble's members run, for the operator."""

    def batches(self, ensemble: Ensemble) -> bool:
        """Whether what runs the members makes batches of requests itself, and is best given each at once."""

    def resource(self, ensemble: Ensemble) -> Hashable:
        """What a batch of the ensemble has to itself while it runs; not asked for where the engine batches.

        Of ensembles whose resources are equal one batch runs at a time; only an ensemble's own next batch may
        begin while one ends.
        """

    def lanes(self, ensemble: Ensemble) -> int:
        """How many of the ensemble's members run at once."""

    def allocate(self, shape: tuple[int, ...]) -> Batch:
        """Memory for a batch that is put together of several requests' images, its values not set."""

    def start(self, ensemble: Ensemble, batch: Batch) -> "list[asyncio.Future[MemberRun]]":
        """Hand the batch to every member that can take it, at once.

        Args:
            ensemble: one of `ensembles`, or one of its members alone.
            batch: at most the ensemble's `max_batch_size` images.

        Returns:
            one future per member, in the ensemble's order. A member's failure is an `error` in its result,
            not an exception. Cancelling a future asks its member to stop; nobody waits until it has.
        """

    async def close(self) -> None:
        """Stop what runs and free the members."""
