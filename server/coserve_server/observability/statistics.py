"""What every model has done since the start.

The counters are those of Triton's statistics extension
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md).
"""

import time
from collections import defaultdict
from dataclasses import dataclass, field

from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.pipeline.batching import BatchRun


@dataclass
class Total:
    """How often something happened, and how many nanoseconds it took in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count it once more."""
        self.count += 1
        self.ns += ns


@dataclass
class Compute:
    """Making tensors of what was sent, running members, combining what they gave."""

    input: Total = field(default_factory=Total)
    infer: Total = field(default_factory=Total)
    output: Total = field(default_factory=Total)

    def add(self, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count each once more."""
        self.input.add(input_ns)
        self.infer.add(infer_ns)
        self.output.add(output_ns)


@dataclass
class ModelStatistics:
    """Counters of one version of a model.

    Attributes:
        last_ms: when it last answered, since the epoch; 0 where it has not.
        inferences: images it answered.
        executions: batches that ran; a batch may hold images of several requests.
        success, fail: requests, from the complete body to the answer.
        queue: waiting for the engine's turn, per answered request.
        compute: per answered request.
        batches: per batch, by its size; making tensors and combining belong to requests, not to batches.
    """

    last_ms: int = 0
    inferences: int = 0
    executions: int = 0
    success: Total = field(default_factory=Total)
    fail: Total = field(default_factory=Total)
    queue: Total = field(default_factory=Total)
    compute: Compute = field(default_factory=Compute)
    batches: defaultdict[int, Compute] = field(default_factory=lambda: defaultdict(Compute))

    def answered(
        self, images: int, total_ns: int, queue_ns: int, input_ns: int, infer_ns: int, output_ns: int
    ) -> None:
        """Count a request."""
        self.last_ms = time.time_ns() // 1_000_000
        self.inferences += images
        self.success.add(total_ns)
        self.queue.add(queue_ns)
        self.compute.add(input_ns, infer_ns, output_ns)

    def ran(self, size: int, infer_ns: int) -> None:
        """Count a batch."""
        self.executions += 1
        self.batches[size].add(0, infer_ns, 0)


class Statistics:
    """The counters of all models."""

    def __init__(self) -> None:
        self._models: defaultdict[tuple[str, str], ModelStatistics] = defaultdict(ModelStatistics)

    def of(self, model: Ensemble) -> ModelStatistics:
        """The counters of an ensemble, or of a member alone."""
        return self._models[model.name, model.version]

    def ran(self, ensemble: Ensemble, run: BatchRun) -> None:
        """Count a batch for its ensemble, and as a request of its own for each member that it went to."""
        now = time.perf_counter_ns()
        outcomes = run.outcomes()
        ended = [one.end_ns for one in outcomes if one is not None and one.logits is not None]
        if ended:
            self.of(ensemble).ran(run.size, max(ended) - run.began_ns)
        if ensemble.part_of is not None:
            return
        for member, outcome in zip(ensemble.members, outcomes, strict=True):
            counters = self._models[member.name, ensemble.version_of(member)]
            if outcome is None or outcome.logits is None:
                counters.fail.add(now - run.began_ns)
                continue
            queue_ns, infer_ns = outcome.start_ns - run.began_ns, outcome.end_ns - outcome.start_ns
            counters.answered(run.size, queue_ns + infer_ns, queue_ns, 0, infer_ns, 0)
            counters.ran(run.size, infer_ns)
