"""What every model has done since the start.

The counters are those of Triton's statistics extension
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md).
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from coserve_server.ensembles import Ensemble
from coserve_server.fan_out import Chunk


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
        executions: batches they ran as.
        success, fail: requests, from the complete body to the answer.
        queue: waiting for the engine's turn, per answered request.
        compute: per answered request.
        batches: per batch, by its size.
    """

    last_ms: int = 0
    inferences: int = 0
    executions: int = 0
    success: Total = field(default_factory=Total)
    fail: Total = field(default_factory=Total)
    queue: Total = field(default_factory=Total)
    compute: Compute = field(default_factory=Compute)
    batches: defaultdict[int, Compute] = field(default_factory=lambda: defaultdict(Compute))

    def answered(self, chunks: Sequence[Chunk], total_ns: int, input_ns: int, output_ns: int) -> None:
        """Count a request; its batches share `input_ns` and `output_ns` by size."""
        images = sum(chunk.size for chunk in chunks)
        self.success.add(total_ns)
        self.queue.add(sum(chunk.queue_ns for chunk in chunks))
        self.compute.add(input_ns, sum(chunk.inference_ns for chunk in chunks), output_ns)
        for chunk in chunks:
            shares = (ns * chunk.size // images for ns in (input_ns, output_ns))
            self._executed(chunk.size, next(shares), chunk.inference_ns, next(shares))

    def ran(self, size: int, queue_ns: int, infer_ns: int) -> None:
        """Count a batch that a member ran for its ensemble."""
        self.success.add(queue_ns + infer_ns)
        self.queue.add(queue_ns)
        self.compute.add(0, infer_ns, 0)
        self._executed(size, 0, infer_ns, 0)

    def _executed(self, size: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        self.last_ms = time.time_ns() // 1_000_000
        self.inferences += size
        self.executions += 1
        self.batches[size].add(input_ns, infer_ns, output_ns)


class Statistics:
    """The counters of all models."""

    def __init__(self) -> None:
        self._models: defaultdict[tuple[str, str], ModelStatistics] = defaultdict(ModelStatistics)

    def of(self, model: Ensemble) -> ModelStatistics:
        """The counters of an ensemble, or of a member alone."""
        return self._models[model.name, model.version]

    def ran(self, ensemble: Ensemble, chunk: Chunk) -> None:
        """Count a batch for each member that ran it; one that runs alone has requests of its own."""
        if ensemble.part_of is not None:
            return
        for member, run in zip(ensemble.members, chunk.runs, strict=True):
            counters = self._models[member.name, ensemble.version_of(member)]
            if run is None:
                counters.fail.add(chunk.ended_ns - chunk.asked_ns)
            elif run.logits is None:
                counters.fail.add(run.end_ns - chunk.asked_ns)
            else:
                counters.ran(chunk.size, run.start_ns - chunk.asked_ns, run.end_ns - run.start_ns)
