"""One version of an ensemble as it is loaded: all of its members, warm."""

from collections.abc import Sequence
from concurrent.futures import TimeoutError

import numpy as np

from coserve_server.engines.base import Batch, MemberRun
from coserve_server.engines.embedded.lanes import Lane
from coserve_server.engines.embedded.members import Load, LoadedMember, misfit
from coserve_server.ensembles.ensemble import Ensemble

WARM_UP_S = 120
"""For one image through one member; one that takes longer would block every later load."""


class Generation:
    """An ensemble's members and the lanes they run on, in turn; each member always runs on the same one.

    It does not refer to the ensemble: that lives as long as requests hold it, and this as long as that.
    """

    def __init__(self, ensemble: Ensemble, load: Load, lanes: Sequence[Lane]) -> None:
        """Load and warm every member.

        Args:
            lanes: its own from now on.

        Raises:
            EngineError: a member cannot be loaded, or does not fit its ensemble; nothing stays loaded.
        """
        self.lanes = lanes
        self.members: list[LoadedMember] = []
        try:
            for index, member in enumerate(ensemble.members):
                lane = lanes[index % len(lanes)]
                # A session's own threads inherit the cores of the thread that creates it.
                self.members.append(lane.submit(load, ensemble, member, lane).result())
            self._warm_up(ensemble)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Wait for what runs, then end the threads and free the members."""
        for lane in self.lanes:
            lane.close()
        while self.members:
            self.members.pop().close()

    def _warm_up(self, ensemble: Ensemble) -> None:
        """Run one image and, to find exports with a frozen batch, two; check what comes out."""
        for size in range(1, min(2, ensemble.max_batch_size) + 1):
            batch = np.zeros((size, *ensemble.preprocessing.shape), np.float32)
            wanted = (size, len(ensemble.labels))
            for loaded in self.members:
                run = self._run(ensemble, loaded, batch)
                if run.logits is None:
                    raise misfit(ensemble, loaded.member, f"fails on a batch of {size}: {run.error}")
                if run.logits.shape != wanted:
                    shapes = f"logits {list(run.logits.shape)} where {list(wanted)} is wanted"
                    raise misfit(ensemble, loaded.member, f"gives {shapes} (batch, labels)")
                if not np.isfinite(run.logits).all():
                    raise misfit(ensemble, loaded.member, "gives logits that are not finite")

    def _run(self, ensemble: Ensemble, loaded: LoadedMember, batch: Batch) -> MemberRun:
        call = loaded.call()
        run = loaded.lane.submit(loaded.run, batch, call)
        try:
            return run.result(WARM_UP_S)
        except TimeoutError as error:
            call.stop()
            loaded.lane.abandon(run)
            raise misfit(ensemble, loaded.member, f"gives no answer within {WARM_UP_S} s") from error
