"""One version of an ensemble, loaded: all members, warm, and the lanes they run on; in copies, if any."""

from collections.abc import Sequence
from concurrent.futures import Future, TimeoutError, wait

import numpy as np

from coserve_server.engines.base import Images
from coserve_server.engines.embedded.lanes import Lane
from coserve_server.engines.embedded.members import Load, LoadedMember, misfit
from coserve_server.ensembles.ensemble import Ensemble, Member
from coserve_server.outcomes import MemberRun, Place

LOAD_S = 600
"""Limit on loading one member, whose file may lie on a mount that hangs; later loads wait for it."""
WARM_UP_S = 120
"""Limit on one warm-up run of one member; a slower one would block every later load."""


class LoadedEnsemble:
    """An ensemble's members and their lanes; a copy of a member always runs on the same lane.

    It does not refer to the ensemble: requests keep the ensemble alive, and the ensemble keeps this alive.

    Attributes:
        copies: the members of each copy.
        places: what each copy occupies.
    """

    def __init__(self, ensemble: Ensemble, load: Load, lanes: Sequence[Lane], copies: int = 1) -> None:
        """Load and warm every member.

        Args:
            lanes: threads for the members to share in turn; owned by this object from now on.
            copies: copies of the ensemble, each on an equal part of the lanes.

        Raises:
            EngineError: a member cannot be loaded, or does not fit its ensemble; nothing stays loaded.
        """
        self.lanes = lanes
        self.copies: list[list[LoadedMember]] = [[] for _ in range(copies)]
        part = len(lanes) // copies
        parts = [lanes[number * part : (number + 1) * part] for number in range(copies)]
        self.places = [
            Place(number, frozenset().union(*(lane.cores for lane in own)))
            for number, own in enumerate(parts)
        ]
        try:
            for copy, own in zip(self.copies, parts, strict=True):
                for index, member in enumerate(ensemble.members):
                    lane = own[index % part]
                    # A session's own threads inherit the cores of the thread that creates it.
                    copy.append(_wait(ensemble, member, lane, lane.submit(load, ensemble, member, lane)))
            self._warm_up(ensemble)
        except BaseException:
            self.close()
            raise

    @property
    def members(self) -> list[LoadedMember]:
        """The members of the first copy, then of the next."""
        return [member for copy in self.copies for member in copy]

    def close(self) -> None:
        """Stop running batches, which nobody can wait for any more; end the threads and free the members."""
        for lane in self.lanes:
            lane.stop()
        for lane in self.lanes:
            lane.close()
        while self.copies:
            for member in self.copies.pop():
                member.close()

    def _warm_up(self, ensemble: Ensemble) -> None:
        """Run one image and, to find exports with a fixed batch size, two; check the logits."""
        for size in range(1, min(2, ensemble.max_batch_size) + 1):
            images = np.zeros((size, *ensemble.preprocessing.shape), np.float32)
            wanted = (size, len(ensemble.labels))
            for loaded in self.members:
                run = self._run(ensemble, loaded, images)
                if run.logits is None:
                    reason = run.failure.reason if run.failure else "no logits"
                    raise misfit(ensemble, loaded.member, f"fails on a batch of {size}: {reason}")
                if run.logits.shape != wanted:
                    shapes = f"logits {list(run.logits.shape)}, expected {list(wanted)}"
                    raise misfit(ensemble, loaded.member, f"gives {shapes} (batch, labels)")
                if not np.isfinite(run.logits).all():
                    raise misfit(ensemble, loaded.member, "gives logits that are not finite")

    def _run(self, ensemble: Ensemble, loaded: LoadedMember, images: Images) -> MemberRun:
        call = loaded.call()
        run = loaded.lane.submit(loaded.run, images, call)
        try:
            return run.result(WARM_UP_S)
        except TimeoutError as error:
            call.stop()
            loaded.lane.abandon(run)
            raise misfit(ensemble, loaded.member, f"gives no answer within {WARM_UP_S} s") from error


def _wait(ensemble: Ensemble, member: Member, lane: Lane, loading: Future[LoadedMember]) -> LoadedMember:
    if wait([loading], LOAD_S).not_done:
        lane.abandon(loading)
        raise misfit(ensemble, member, f"is not loaded within {LOAD_S} s; is its file system reachable?")
    return loading.result()
