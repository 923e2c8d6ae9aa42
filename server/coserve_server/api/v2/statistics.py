"""Reports the models' counters as Triton's statistics extension does.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
"""

from pydantic import BaseModel, Field

from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.observability.statistics import Compute, ModelStatistics, Total


class Duration(BaseModel):
    """Number of times something happened, and its total duration."""

    count: int = 0
    ns: int = 0


class BatchStatistics(BaseModel):
    """Batches of one size; `compute_input` and `compute_output` are 0, since they belong to requests."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class InferenceStatistics(BaseModel):
    """Durations of requests; the cache counters are 0, since there is no cache."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration = Duration()
    cache_miss: Duration = Duration()


class Statistics(BaseModel):
    """Counters of one model since the start."""

    name: str
    version: str
    last_inference: int = Field(description="Milliseconds since the epoch; 0 if there was none.")
    inference_count: int = Field(description="Images classified.")
    execution_count: int = Field(description="Batches run.")
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]


class StatisticsList(BaseModel):
    """Counters of models since the start."""

    model_stats: list[Statistics]


def describe_statistics(model: Ensemble, counters: ModelStatistics) -> Statistics:
    """Return a model's counters in the protocol's form."""
    return Statistics(
        name=model.name,
        version=model.version,
        last_inference=counters.last_ms,
        inference_count=counters.inferences,
        execution_count=counters.executions,
        inference_stats=InferenceStatistics(
            success=_to_duration(counters.success),
            fail=_to_duration(counters.fail),
            queue=_to_duration(counters.queue),
            **_to_durations(counters.compute),
        ),
        batch_stats=[
            BatchStatistics(batch_size=size, **_to_durations(compute))
            for size, compute in sorted(counters.batches.items())
        ],
    )


def _to_duration(total: Total) -> Duration:
    return Duration(count=total.count, ns=total.ns)


def _to_durations(compute: Compute) -> dict[str, Duration]:
    return {f"compute_{part}": _to_duration(total) for part, total in vars(compute).items()}
