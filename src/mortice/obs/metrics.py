"""The one table of metrics. docs/metrics.md is generated from it (`python -m mortice.obs.metrics`), a test
compares.

Names, units and meanings are those that dashboards written for vLLM already know, under our prefix. A name
never changes: it is first hidden for one version, then deleted.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import cast

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from mortice.obs.metric_table import BY_KEY, TABLE, Metric
from mortice.specs.messages import WorkerStats

PREFIX = "mortice:"


class Metrics:
    """The edge's own counts, and a view on the workers' at the moment of the scrape."""

    def __init__(self, model_name: str) -> None:
        disable_created_metrics()  # or each series comes with a second one, its birthday
        self.model_name = model_name
        self.registry = CollectorRegistry()
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        self._children: dict[tuple[str, ...], Counter | Gauge | Histogram] = {}
        for metric in TABLE:
            if metric.source == "edge":
                self._made[metric.name] = self._make(metric)

    def _make(self, metric: Metric) -> Counter | Gauge | Histogram:
        name, labels = PREFIX + metric.name, ("model_name", *metric.labels)
        if metric.kind == "histogram":
            return Histogram(name, metric.help, labels, buckets=metric.buckets, registry=self.registry)
        kind = Counter if metric.kind == "counter" else Gauge
        return kind(name, metric.help, labels, registry=self.registry)

    def _child(self, name: str, labels: tuple[str, ...]) -> Counter | Gauge | Histogram:
        key = (name, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = self._made[name].labels(self.model_name, *labels)
        return child

    def add(self, name: str, value: float = 1.0, *labels: str) -> None:
        """Add to a counter of the table; `labels` in the order of its row."""
        cast(Counter, self._child(name, labels)).inc(value)

    def set(self, name: str, value: float, *labels: str) -> None:
        cast(Gauge, self._child(name, labels)).set(value)

    def observe(self, name: str, value: float, *labels: str) -> None:
        cast(Histogram, self._child(name, labels)).observe(value)

    def watch_workers(self, collector: Collector) -> None:
        self.registry.register(collector)

    def render(self) -> bytes:
        """Prometheus text format, version 0.0.4."""
        return generate_latest(self.registry)


def worker_families(
    model_name: str, workers: Iterable[tuple[str, bool, WorkerStats | None]]
) -> Iterator[Family]:
    """Metric families of (role, can serve, stats or None) rows; series of unknown counters are left out."""
    families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
    for metric in TABLE:
        if metric.source == "worker":
            labels = ("model_name", "worker", "role", *metric.labels)
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            families[metric.name] = kind(PREFIX + metric.name, metric.help, labels=labels)
    for role, up, stats in workers:
        if stats is None:
            continue
        base = (model_name, stats.worker_id, role)
        families["worker_up"].add_metric(base, float(up))
        for name, label, value in _samples(stats):
            family = families.get(name)
            if family is not None:
                family.add_metric((*base, label) if label else base, value)
    yield from families.values()


_STATES = ("running", "paused", "asleep", "updating", "draining")


def _samples(stats: WorkerStats) -> Iterator[tuple[str, str, float]]:
    """(name, value of its label or "", value) of everything a worker tells."""
    yield "num_requests_running", "", stats.num_running
    yield "num_requests_waiting", "", stats.num_waiting
    yield "num_requests_waiting_by_reason", "capacity", stats.num_waiting
    yield "num_requests_waiting_by_reason", "kv_transfer", stats.num_pulling
    yield "kv_transfers_in_flight", "", stats.num_pulling
    yield "kv_leased_blocks", "", stats.num_leased_blocks
    used = stats.num_blocks - stats.num_free_blocks
    yield "kv_cache_usage_perc", "", used / stats.num_blocks if stats.num_blocks else 0.0
    yield "engine_weight_version", "", stats.weight_version
    for state in _STATES:
        yield "engine_sleep_state", state, float(stats.state == state)
    counted = [stats.counters[key] for key in ("prompt_tokens", "generation_tokens") if key in stats.counters]
    if counted:
        yield "iteration_tokens_total", "", sum(counted)
    yield from _counters(stats.counters)


def _counters(counters: Mapping[str, float]) -> Iterator[tuple[str, str, float]]:
    for key, value in counters.items():
        name, _, label = key.partition(":")
        metric = BY_KEY.get(name)
        if metric is not None and bool(metric.labels) == bool(label):
            yield metric.name, label, value


def as_markdown() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` speaks the Prometheus text format. Generated from `mortice/obs/metrics.py`.",
        "",
        f"Every name has the prefix `{PREFIX}` and the label `model_name`. What workers count has the labels",
        "`worker` and `role` too, starts again at zero when a worker does, and is absent where a worker does not",
        "count it.",
        "",
        "| name | kind | unit | labels | counted by | meaning |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for m in sorted(TABLE, key=lambda m: m.name):
        labels = ", ".join(f"`{label}`" for label in m.labels) or "–"
        lines.append(f"| `{m.name}` | {m.kind} | {m.unit} | {labels} | {m.source} | {m.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(as_markdown(), end="")
