from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from coserve_server.observability.statistics import Statistics
from coserve_server.workers.summing import Snapshot, add_up
from tests.server.fake_engine import ensemble


def snapshot(count: int, ready: int) -> Snapshot:
    counter = CounterMetricFamily("coserve_images", "Images.", labels=["model"])
    counter.add_metric(["pair"], count)
    counter.add_metric([f"only{count}"], count)
    histogram = HistogramMetricFamily("coserve_size", "Sizes.", labels=["model"])
    histogram.add_metric(["pair"], [("1.0", count), ("+Inf", 2 * count)], 3 * count)
    reloads = CounterMetricFamily("coserve_model_reloads", "Changes of files.", value=count)
    gauges = [
        GaugeMetricFamily("coserve_requests_in_flight", "In progress.", count),
        GaugeMetricFamily("coserve_model_ready", "Whether ready.", ready),
    ]
    statistics = Statistics()
    model = statistics.get(ensemble())
    model.count_answer(count, total_ns=10, queue_ns=1, input_ns=2, infer_ns=3, output_ns=4)
    model.count_batch(count, 3)
    model.count_batch(8, 5)
    return Snapshot([counter, histogram, reloads, *gauges], statistics)


def samples(total: Snapshot) -> dict[str, float]:
    return {
        sample.name + "".join(sample.labels.values()): sample.value
        for metric in total.metrics
        for sample in metric.samples
    }


def test_metrics_are_added_up_or_the_worst_counts() -> None:
    parts = [snapshot(1, ready=1), snapshot(5, ready=0)]
    assert samples(add_up(parts)) == {
        "coserve_images_totalpair": 6,
        "coserve_images_totalonly1": 1,
        "coserve_images_totalonly5": 5,
        "coserve_size_bucketpair1.0": 6,
        "coserve_size_bucketpair+Inf": 12,
        "coserve_size_countpair": 12,
        "coserve_size_sumpair": 18,
        "coserve_model_reloads_total": 5,
        "coserve_requests_in_flight": 6,
        "coserve_model_ready": 0,
    }
    assert samples(parts[0])["coserve_images_totalpair"] == 1, "the parts are used again"


def test_of_a_worker_that_has_ended_only_counts_remain() -> None:
    total = samples(add_up([snapshot(1, ready=1), snapshot(5, ready=0).counts()]))
    assert total["coserve_images_totalpair"] == 6
    assert total["coserve_requests_in_flight"] == 1
    assert total["coserve_model_ready"] == 1


def test_statistics_are_added_up() -> None:
    parts = [snapshot(1, ready=1), snapshot(5, ready=1)]
    parts[1].statistics.get(ensemble()).fail.add(7)
    parts[1].statistics.get(ensemble()).last_ms = 2**50
    total = add_up(parts).statistics.get(ensemble())
    assert (total.inferences, total.executions, total.last_ms) == (6, 4, 2**50)
    assert (total.success.count, total.success.ns) == (2, 20)
    assert (total.queue.ns, total.fail.count, total.fail.ns) == (2, 1, 7)
    assert (total.compute.input.ns, total.compute.infer.ns, total.compute.output.ns) == (4, 6, 8)
    assert {size: one.infer.count for size, one in total.batches.items()} == {1: 1, 5: 1, 8: 2}
    assert parts[0].statistics.get(ensemble()).inferences == 1
