"""Measures a server with several loads, and reports the results."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coserve_bench.errors import BenchError
from coserve_bench.http.generator import Generator
from coserve_bench.http.loads import ClosedLoop, Interval
from coserve_bench.http.results import LoadResults
from coserve_bench.progress import Progress
from coserve_bench.stopping import check_stopped, run_until_stopped

if TYPE_CHECKING:
    from coserve_bench.http.engine_alone import EngineAlone


@dataclass
class Report:
    """A measurement and its results.

    Attributes:
        model, version: the ensemble.
        images: number of different images.
        image_bytes: their average size.
        cores: cores that are usable here, by the load generator and by a server on this machine.
        rounds: rounds in which the loads take turns, so that a disturbance affects all of them alike.
        engine: the engine without a server; None not to measure it.
        complete: whether all rounds were run.
    """

    url: str
    model: str
    version: str
    images: int
    image_bytes: float
    cores: int
    rounds: int
    interval: Interval
    loads: list[LoadResults]
    engine: "EngineAlone | None" = None
    complete: bool = field(default=False, init=False)

    def measure(self, generator: Generator, progress: Progress | None) -> None:
        """Apply all loads in turn, round after round; an error keeps the results so far.

        Raises:
            BenchError: the server is gone, the load generator ended, or no request was answered.
            KeyboardInterrupt: a load was stopped.
        """
        steps: Sequence[LoadResults | EngineAlone] = [*self.loads, *([self.engine] if self.engine else [])]
        for done in range(self.rounds * len(steps)):
            check_stopped()
            step = steps[done % len(steps)]
            if isinstance(step, LoadResults):
                self._apply(step, generator, done // len(steps) + 1)
            else:
                run_until_stopped(step.measure(self.interval.seconds))
            if progress is not None:
                progress("measuring", done + 1, self.rounds * len(steps))
        self.complete = True
        if not any(load.round_trip for load in self.loads):
            why = ", ".join(self.failures) or "no request was due in time, give more --seconds"
            raise BenchError(f"nothing was answered: {why}")

    def _apply(self, load: LoadResults, generator: Generator, number: int) -> None:
        """Apply one load in round `number`."""
        run = generator.run(load.load, self.interval)
        if run.unreachable:
            # Time without a server must not lower its throughput.
            run.seconds = 0
        load.add(run)
        if run.stopped:
            raise KeyboardInterrupt
        if run.unreachable:
            raise BenchError(f"the server stopped answering in round {number}")

    @property
    def failures(self) -> list[str]:
        """Kinds of failures, the most frequent first."""
        kinds = sum((load.errors for load in self.loads), start=Counter[str]())
        return [kind for kind, _ in kinds.most_common()]

    @property
    def added_ms(self) -> float | None:
        """Median latency of one image after another over the server, less the engine's; None if unknown."""
        alone = next((one for one in self.loads if one.load == ClosedLoop(1) and one.round_trip), None)
        if self.engine is None or not self.engine.latency or alone is None:
            return None
        return alone.latency.percentile(50) - self.engine.latency.percentile(50)

    def share_of_engine(self, load: LoadResults) -> float | None:
        """Return the share of the engine's best throughput that a load reached; None if unknown.

        The load generator's processor time is subtracted, as if clients were on another machine.
        """
        if self.engine is None or not self.engine.latency or not isinstance(load.load, ClosedLoop):
            return None
        return load.per_second_without_generator(self.cores) / self.engine.best

    def to_json(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        engine = None
        if self.engine is not None and self.engine.latency:
            shares = {str(load.load): self.share_of_engine(load) for load in self.loads}
            engine = {
                **self.engine.to_json(),
                "gateway_adds_ms": self.added_ms,
                "gateway_reaches": {load: share for load, share in shares.items() if share is not None},
            }
        return {
            "url": self.url,
            "model": self.model,
            "version": self.version,
            "images": self.images,
            "image_bytes": round(self.image_bytes),
            "cores": self.cores,
            "rounds": self.rounds,
            "seconds": self.interval.seconds,
            "warm_up_s": self.interval.warm_up_s,
            "complete": self.complete,
            "loads": [load.to_json() for load in self.loads],
            "engine": engine,
        }
