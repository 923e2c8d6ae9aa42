"""Everything measured of a server in one go, and the measuring itself."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from coserve_bench.errors import BenchError
from coserve_bench.http.generator import Generator
from coserve_bench.http.loads import ClosedLoop, Interval
from coserve_bench.http.results import LoadResults

if TYPE_CHECKING:
    from coserve_bench.http.engine import RawEngine

Progress = Callable[[str, int, int], None]


@dataclass
class Report:
    """What is measured, how, and what came of it.

    Attributes:
        images: how many different ones are sent; image_bytes: how large they are on average.
        cores: that are usable here, by the load generator and by a server beside it.
        rounds: how often every load gets its turn, so that whatever else the machine does meets all alike.
        complete: whether all rounds ran.
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
    engine: "RawEngine | None" = None
    complete: bool = field(default=False, init=False)

    def measure(self, generator: Generator, progress: Progress | None) -> None:
        """Apply all loads in turn, round after round; what ends it early leaves what was measured so far.

        Raises:
            BenchError: the server is gone, the load generator died, or nothing was answered.
            KeyboardInterrupt: it was stopped.
        """
        steps: Sequence[LoadResults | RawEngine] = [*self.loads, *([self.engine] if self.engine else [])]
        for done in range(self.rounds * len(steps)):
            step = steps[done % len(steps)]
            if isinstance(step, LoadResults):
                self._apply(step, generator, done // len(steps) + 1)
            else:
                asyncio.run(step.measure(self.interval.seconds))
            if progress is not None:
                progress("measuring", done + 1, self.rounds * len(steps))
        self.complete = True
        if not any(load.round_trip for load in self.loads):
            why = ", ".join(self.failures) or "no request was due in time, give more --seconds"
            raise BenchError(f"nothing was answered: {why}")

    def _apply(self, load: LoadResults, generator: Generator, number: int) -> None:
        """Apply one load in the round of that number."""
        run = generator.run(load.load, self.interval)
        if run.unreachable:
            # The time without a server is none of its own.
            run.seconds = 0
        load.add(run)
        if run.stopped:
            raise KeyboardInterrupt
        if run.unreachable:
            raise BenchError(f"the server stopped answering in round {number}")

    @property
    def failures(self) -> list[str]:
        """Every kind of failure there was, the most frequent first."""
        kinds = sum((load.errors for load in self.loads), start=Counter[str]())
        return [kind for kind, _ in kinds.most_common()]

    @property
    def added_ms(self) -> float | None:
        """What the median gains over the engine's where one image after another is sent; None if unknown."""
        alone = next((one for one in self.loads if one.load == ClosedLoop(1) and one.round_trip), None)
        if self.engine is None or not self.engine.latency or alone is None:
            return None
        return alone.latency.percentile(50) - self.engine.latency.percentile(50)

    def of_engine(self, load: LoadResults) -> float | None:
        """The share of the engine's best throughput that a load reached; None if unknown.

        The load generator's processor time is taken off: it is what clients on another machine would get.
        """
        if self.engine is None or not self.engine.latency or not isinstance(load.load, ClosedLoop):
            return None
        return load.per_second_without_generator(self.cores) / self.engine.best

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        engine = None
        if self.engine is not None and self.engine.latency:
            shares = {str(load.load): self.of_engine(load) for load in self.loads}
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
