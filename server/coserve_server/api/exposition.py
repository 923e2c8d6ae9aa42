"""Exports metrics in Prometheus' data model; each scrape builds them from the counters."""

from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import accumulate

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.core import (
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from coserve_server.catalogue.reload import Reloader
from coserve_server.ensembles.ensemble import Ensemble
from coserve_server.observability.metrics import Histogram, Metrics, ModelMetrics
from coserve_server.pipeline.classifier import Classifier
from coserve_server.pipeline.mirror import Mirror

CONNECTIONS_REFUSED = "Connections closed with a problem before a request's headers were complete, by kind."
MODEL_READY = "1 if the quorum of members is ready, in every worker if there are several, else 0."


def create_registry(classifier: Classifier, metrics: Metrics, reloader: Reloader | None) -> CollectorRegistry:
    """Return a registry for one server, including process and interpreter metrics."""
    registry = CollectorRegistry()
    registry.register(_Served(classifier))
    registry.register(_Requests(metrics))
    registry.register(_Models(metrics))
    if classifier.mirror is not None:
        registry.register(_Mirror(classifier.mirror))
    if reloader is not None:
        registry.register(_Reloads(reloader))
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=registry)
    return registry


class _Served(Collector):
    """Reports what is served now."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier

    def collect(self) -> Iterator[Metric]:
        settings = self.classifier.settings
        catalogue = self.classifier.catalogue
        build = InfoMetricFamily("coserve_build", "Version and engine of the server.")
        build.add_metric([], {"version": version("coserve"), "engine": settings.engine})
        yield build
        text = "Classification requests in progress; those beyond coserve_requests_limit are refused."
        yield GaugeMetricFamily("coserve_requests_in_flight", text, self.classifier.in_flight)
        limit = settings.max_requests
        yield GaugeMetricFamily("coserve_requests_limit", "The setting max_requests.", limit)
        yield self._gauge("info", "1 for every served version.", lambda _: 1)
        yield self._gauge("ready", MODEL_READY, catalogue.ready)
        yield self._gauge("quorum", "Members that must answer.", catalogue.quorum)
        yield self._gauge("members", "Members of the ensemble.", lambda ensemble: len(ensemble.members))
        yield self._gauge("members_ready", "Members that can answer.", catalogue.ready_members)
        text = "1 for a model whose newest version cannot be loaded; the log says why."
        errors = GaugeMetricFamily("coserve_model_load_error", text, labels=["model"])
        for name in catalogue.load_errors:
            errors.add_metric([name], 1)
        yield errors

    def _gauge(self, name: str, text: str, read: Callable[[Ensemble], float]) -> Metric:
        family = GaugeMetricFamily(f"coserve_model_{name}", text, labels=("model", "version"))
        for model in self.classifier.catalogue.ensembles:
            for ensemble in self.classifier.catalogue.versions(model):
                family.add_metric((model, ensemble.version), read(ensemble))
        return family


class _Mirror(Collector):
    """Compares the mirror's answers with the clients'."""

    def __init__(self, mirror: Mirror) -> None:
        self.mirror = mirror

    def collect(self) -> Iterator[Metric]:
        names = ("model", "version", "mirror")
        text = "Requests chosen for the mirror, by outcome."
        requests = CounterMetricFamily("coserve_mirror_requests", text, labels=(*names, "outcome"))
        text = "Images that the mirror also answered."
        images = CounterMetricFamily("coserve_mirror_images", text, labels=names)
        text = "Images for which both gave the same most probable class."
        agreements = CounterMetricFamily("coserve_mirror_agreements", text, labels=names)
        text = "Time that the client's ensemble (by: answer) and the mirror (by: mirror) had the same images."
        durations = HistogramMetricFamily("coserve_mirror_inference_seconds", text, labels=(*names, "by"))
        for model, comparison in self.mirror.comparisons.items():
            labels = (*model, self.mirror.name)
            for outcome, count in comparison.outcomes.items():
                requests.add_metric((*labels, outcome), count)
            images.add_metric(labels, comparison.images)
            agreements.add_metric(labels, comparison.agreements)
            for by, histogram in (("answer", comparison.answer), ("mirror", comparison.mirror)):
                durations.add_metric((*labels, by), _buckets(histogram), histogram.sum)
        yield from (requests, images, agreements, durations)


class _Reloads(Collector):
    """Reports the outcomes of reloads."""

    def __init__(self, reloader: Reloader) -> None:
        self.reloader = reloader

    def collect(self) -> Iterator[Metric]:
        text = "Changes of a model's files since the start, by outcome."
        reloads = CounterMetricFamily("coserve_model_reloads", text, labels=("model", "outcome"))
        for labels, count in self.reloader.outcomes.items():
            reloads.add_metric(labels, count)
        yield reloads


class _Requests(Collector):
    """Reports the outcomes of requests and connections."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def collect(self) -> Iterator[Metric]:
        text = "Requests answered; model is empty if they named none that is served."
        requests = CounterMetricFamily("coserve_requests", text, labels=("model", "route", "status"))
        for (model, route, status), count in self.metrics.requests.items():
            requests.add_metric((model, route, str(status)), count)
        yield requests
        text = "Requests answered with a problem, by kind."
        refused = CounterMetricFamily("coserve_requests_refused", text, labels=("route", "reason"))
        for labels, count in self.metrics.refused.items():
            refused.add_metric(labels, count)
        yield refused
        closed = CounterMetricFamily("coserve_connections_refused", CONNECTIONS_REFUSED, labels=["reason"])
        for reason, count in self.metrics.connections_refused.items():
            closed.add_metric([reason], count)
        yield closed


class _Models(Collector):
    """Reports the work of the models."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield self._histograms(
            "coserve_request_duration_seconds",
            "Duration of classification requests from headers to response, including receiving the body.",
            lambda model: model.duration,
        )
        yield self._histograms(
            "coserve_queue_duration_seconds",
            "Time that answered classification requests waited for their turn at the engine.",
            lambda model: model.queue,
        )
        yield self._histograms(
            "coserve_batch_size_images",
            "Images in the batches that the engine ran.",
            lambda model: model.batch_size,
        )
        yield self._histograms(
            "coserve_image_members",
            "Members averaged for each image answered.",
            lambda model: model.members_per_image,
        )
        yield self._histograms(
            "coserve_member_overlap_ratio",
            "Sum of the members' durations in a batch / time from first start to last end: S if all S ran "
            "in parallel, 1 or less if one after another.",
            lambda model: model.overlap,
        )
        yield self._member_durations()
        yield self._counters("coserve_images", "Images answered.", lambda model: model.images)
        yield self._counters(
            "coserve_degraded_answers",
            "Answers without a member that was needed.",
            lambda model: model.degraded,
        )
        yield self._counters(
            "coserve_images_stopped_early",
            "Images answered that needed no further member.",
            lambda model: model.stopped_early,
        )
        text = "Requests that lack a member because it was late or failed."
        errors = CounterMetricFamily("coserve_member_errors", text, labels=("model", "member", "kind"))
        for name, model in self.metrics.models.items():
            for (member, kind), count in model.errors.items():
                errors.add_metric((name, member, kind), count)
        yield errors

    def _member_durations(self) -> Metric:
        text = "Time that a member took for a batch."
        family = HistogramMetricFamily("coserve_member_duration_seconds", text, labels=("model", "member"))
        for name, model in self.metrics.models.items():
            for member, histogram in model.members.items():
                family.add_metric((name, member), _buckets(histogram), histogram.sum)
        return family

    def _histograms(self, name: str, text: str, read: Callable[[ModelMetrics], Histogram]) -> Metric:
        family = HistogramMetricFamily(name, text, labels=["model"])
        for model, metrics in self.metrics.models.items():
            histogram = read(metrics)
            family.add_metric([model], _buckets(histogram), histogram.sum)
        return family

    def _counters(self, name: str, text: str, read: Callable[[ModelMetrics], int]) -> Metric:
        family = CounterMetricFamily(name, text, labels=["model"])
        for model, metrics in self.metrics.models.items():
            family.add_metric([model], read(metrics))
        return family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Return the buckets' upper bounds with cumulative counts."""
    bounds = [*map(floatToGoString, histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))
