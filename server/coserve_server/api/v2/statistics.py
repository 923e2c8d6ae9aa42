"""What models have done, as Triton's statistics extension says it.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
"""

from pydantic import BaseModel, Field

from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.observability.statistics import Compute, ModelStatistics, Total


class Duration(BaseModel):
    """How often something happened, and how long it took in all."""

    count: int = 0
    ns: int = 0


class BatchStatistics(BaseModel):
    """Batches of one size that were run; input and output are made per request, and 0 here."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


class InferenceStatistics(BaseModel):
    """Requests. There is no cache."""

    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    cache_hit: Duration = Duration()
    cache_miss: Duration = Duration()


class Statistics(BaseModel):
    """What one model has done since the start."""

    name: str
    version: str
    last_inference: int = Field(description="Milliseconds since the epoch; 0 where there was none.")
    inference_count: int = Field(description="Images classified.")
    execution_count: int = Field(description="Batches run.")
    inference_stats: InferenceStatistics
    batch_stats: list[BatchStatistics]


class StatisticsList(BaseModel):
    """What models have done since the start."""

    model_stats: list[Statistics]


def statistics(model: Ensemble, counters: ModelStatistics) -> Statistics:
    """What a model has done."""
    return Statistics(
        name=model.name,
        version=model.version,
        last_inference=counters.last_ms,
        inference_count=counters.inferences,
        execution_count=counters.executions,
        inference_stats=InferenceStatistics(
            success=_duration(counters.success),
            fail=_duration(counters.fail),
            queue=_duration(counters.queue),
            **_compute(counters.compute),
        ),
        batch_stats=[
            BatchStatistics(batch_size=size, **_compute(compute))
            for size, compute in sorted(counters.batches.items())
        ],
    )


def _duration(total: Total) -> Duration:
    return Duration(count=total.count, ns=total.ns)


def _compute(compute: Compute) -> dict[str, Duration]:
    return {f"compute_{part}": _duration(total) for part, total in vars(compute).items()}
