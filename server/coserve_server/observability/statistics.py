"""Counts the work of every model since the start.

The counters are those of Triton's statistics extension
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md).
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.outcomes import BatchRun, MemberRun


@dataclass
class Total:
    """How often something happened, and its total nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count it once, with its nanoseconds."""
        self.count += 1
        self.ns += ns

    def merge(self, other: "Total") -> None:
        """Add another process's total."""
        self.count += other.count
        self.ns += other.ns


@dataclass
class Compute:
    """Time spent making tensors (input), running members (infer) and combining logits (output)."""

    input: Total = field(default_factory=Total)
    infer: Total = field(default_factory=Total)
    output: Total = field(default_factory=Total)

    def add(self, input_ns: int, infer_ns: int, output_ns: int) -> None:
        """Count each once."""
        self.input.add(input_ns)
        self.infer.add(infer_ns)
        self.output.add(output_ns)

    def merge(self, other: "Compute") -> None:
        """Add another process's totals."""
        self.input.merge(other.input)
        self.infer.merge(other.infer)
        self.output.merge(other.output)


@dataclass
class ModelStatistics:
    """Counters of one version of a model.

    Attributes:
        last_ms: time of the last answer, in milliseconds since the epoch; 0 if there was none.
        inferences: images answered.
        executions: batches run; a batch may hold images of several requests.
        success: answered requests, from the complete body to the answer.
        fail: failed requests, likewise.
        queue: waiting for the engine, per answered request.
        compute: computing, per answered request.
        batches: computing per batch, by batch size; input and output belong to requests and stay 0.
    """

    last_ms: int = 0
    inferences: int = 0
    executions: int = 0
    success: Total = field(default_factory=Total)
    fail: Total = field(default_factory=Total)
    queue: Total = field(default_factory=Total)
    compute: Compute = field(default_factory=Compute)
    batches: defaultdict[int, Compute] = field(default_factory=lambda: defaultdict(Compute))

    def count_answer(
        self, images: int, total_ns: int, queue_ns: int, input_ns: int, infer_ns: int, output_ns: int
    ) -> None:
        """Count an answered request."""
        self.last_ms = time.time_ns() // 1_000_000
        self.inferences += images
        self.success.add(total_ns)
        self.queue.add(queue_ns)
        self.compute.add(input_ns, infer_ns, output_ns)

    def count_batch(self, size: int, infer_ns: int) -> None:
        """Count a batch."""
        self.executions += 1
        self.batches[size].add(0, infer_ns, 0)

    def merge(self, other: "ModelStatistics") -> None:
        """Add another process's counters of the same model."""
        self.last_ms = max(self.last_ms, other.last_ms)
        self.inferences += other.inferences
        self.executions += other.executions
        self.success.merge(other.success)
        self.fail.merge(other.fail)
        self.queue.merge(other.queue)
        self.compute.merge(other.compute)
        for size, compute in other.batches.items():
            self.batches[size].merge(compute)


class Statistics:
    """The counters of all models."""

    def __init__(self) -> None:
        self._models: defaultdict[tuple[str, str], ModelStatistics] = defaultdict(ModelStatistics)

    def get(self, model: Ensemble) -> ModelStatistics:
        """Return the counters of an ensemble, or of a single member."""
        return self._models[model.name, model.version]

    def merge(self, other: "Statistics") -> None:
        """Add another process's counters."""
        for model, counters in other._models.items():
            self._models[model].merge(counters)

    def count_batch(self, ensemble: Ensemble, run: BatchRun, members: Sequence[MemberRun]) -> None:
        """Count a batch for its ensemble, and as one request for each member that it went to.

        Args:
            members: what the members did.
        """
        now = time.perf_counter_ns()
        answered = [one for one in members if one.logits is not None]
        if answered:
            # The members may have been busy with the batch before.
            began_ns = max(run.began_ns, min(one.start_ns for one in answered))
            self.get(ensemble).count_batch(run.size, max(one.end_ns for one in answered) - began_ns)
        if ensemble.part_of is not None:
            return
        given = [member for member in ensemble.members if member.name in run.names]
        for member, outcome in zip(given, members, strict=True):
            counters = self._models[member.name, ensemble.version_of(member)]
            if outcome.logits is None:
                counters.fail.add(now - run.began_ns)
                continue
            queue_ns = outcome.start_ns - run.began_ns
            infer_ns = outcome.end_ns - outcome.start_ns
            counters.count_answer(run.size, queue_ns + infer_ns, queue_ns, 0, infer_ns, 0)
            counters.count_batch(run.size, infer_ns)
