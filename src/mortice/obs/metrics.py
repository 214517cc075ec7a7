"""The one table of metrics. docs/metrics.md is generated from it (`python -m mortice.obs.metrics`), a test
compares.

Names, units and meanings are those that dashboards written for vLLM already know, under our prefix. A name
never changes: it is first hidden for one version, then deleted.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, Literal, cast

import msgspec
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

from mortice.specs.messages import WorkerStats

PREFIX = "mortice:"

_FAST = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    10.0,
    20.0,
)
_SLOW = (
    0.1,
    0.3,
    0.5,
    0.8,
    1.0,
    1.5,
    2.0,
    2.5,
    5.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    120.0,
    240.0,
    480.0,
)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
_SMALL = (1, 2, 5, 10, 20)


class Metric(msgspec.Struct, frozen=True):
    """One row: `source` says who counts it, the edge itself or the workers (through `WorkerStats`)."""

    name: str  # without the prefix, as in WorkerStats.counters
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    help: str
    source: Literal["edge", "worker"]
    labels: tuple[str, ...] = ()  # beside model_name (edge) or model_name, worker and role (worker)
    buckets: tuple[float, ...] = ()


_EDGE: Final = "edge"
_WORKER: Final = "worker"

TABLE: tuple[Metric, ...] = (
    Metric("num_requests_running", "gauge", "requests", "Sequences in the running batch.", _WORKER),
    Metric("num_requests_waiting", "gauge", "requests", "Sequences that wait to be scheduled.", _WORKER),
    Metric(
        "num_requests_waiting_by_reason", "gauge", "requests", "Waiting, by what for.", _WORKER, ("reason",)
    ),
    Metric("kv_cache_usage_perc", "gauge", "fraction", "Share of KV blocks in use; 1 is full.", _WORKER),
    Metric(
        "prefix_cache_queries_total",
        "counter",
        "tokens",
        "Prompt tokens looked up in the prefix cache.",
        _WORKER,
    ),
    Metric(
        "prefix_cache_hits_total", "counter", "tokens", "Prompt tokens found in the prefix cache.", _WORKER
    ),
    Metric(
        "external_prefix_cache_queries_total",
        "counter",
        "tokens",
        "Prompt tokens another worker was to give.",
        _WORKER,
    ),
    Metric(
        "external_prefix_cache_hits_total",
        "counter",
        "tokens",
        "Prompt tokens whose KV came from another.",
        _WORKER,
    ),
    Metric(
        "num_preemptions_total", "counter", "sequences", "Sequences put back to free their blocks.", _WORKER
    ),
    Metric(
        "iteration_tokens_total", "counter", "tokens", "Tokens computed in steps, prompt and output.", _WORKER
    ),
    Metric(
        "engine_sleep_state",
        "gauge",
        "state",
        "1 if the worker is in this state, else 0.",
        _WORKER,
        ("state",),
    ),
    Metric(
        "engine_weight_version", "gauge", "version", "Version of the weights a worker computes with.", _WORKER
    ),
    Metric("steps_total", "counter", "steps", "Steps of the engine loop that computed something.", _WORKER),
    Metric(
        "step_gpu_idle_seconds_total",
        "counter",
        "seconds",
        "Time the device waited for the host in steps.",
        _WORKER,
    ),
    Metric(
        "step_host_seconds_total",
        "counter",
        "seconds",
        "Host time spent in steps, by stage.",
        _WORKER,
        ("stage",),
    ),
    Metric(
        "spec_decode_num_draft_tokens_total", "counter", "tokens", "Draft tokens that were verified.", _WORKER
    ),
    Metric(
        "spec_decode_num_accepted_tokens_total", "counter", "tokens", "Draft tokens that were right.", _WORKER
    ),
    Metric("estimated_flops_per_gpu_total", "counter", "FLOP", "Arithmetic of the model's steps.", _WORKER),
    Metric("estimated_read_bytes_per_gpu_total", "counter", "bytes", "Bytes the steps had to read.", _WORKER),
    Metric(
        "estimated_write_bytes_per_gpu_total", "counter", "bytes", "Bytes the steps had to write.", _WORKER
    ),
    Metric("kv_transfers_total", "counter", "transfers", "KV transfers by outcome.", _WORKER, ("outcome",)),
    Metric(
        "kv_transfer_bytes_total", "counter", "bytes", "KV bytes read from or written to a peer.", _WORKER
    ),
    Metric(
        "kv_transfer_seconds_total", "counter", "seconds", "Time from asking for KV to having it.", _WORKER
    ),
    Metric(
        "kv_transfer_checksum_failures_total",
        "counter",
        "blocks",
        "Blocks whose checksum was wrong.",
        _WORKER,
    ),
    Metric("kv_transfers_in_flight", "gauge", "sequences", "Sequences whose KV is on its way.", _WORKER),
    Metric("kv_leased_blocks", "gauge", "blocks", "Blocks held for a peer that is to read them.", _WORKER),
    Metric(
        "kv_leases_expired_total",
        "counter",
        "leases",
        "Leases that ended because nobody renewed them.",
        _WORKER,
    ),
    Metric("worker_up", "gauge", "bool", "1 if the worker can serve.", _WORKER),
    Metric(
        "prompt_tokens_total", "counter", "tokens", "Prompt tokens of requests that began to answer.", _EDGE
    ),
    Metric("prompt_tokens_cached_total", "counter", "tokens", "Of these, tokens whose KV was cached.", _EDGE),
    Metric(
        "prompt_tokens_by_source_total",
        "counter",
        "tokens",
        "Prompt tokens, computed or cached.",
        _EDGE,
        ("source",),
    ),
    Metric("generation_tokens_total", "counter", "tokens", "Tokens given out.", _EDGE),
    Metric(
        "request_success_total",
        "counter",
        "requests",
        "Ended sequences, by why.",
        _EDGE,
        ("finished_reason",),
    ),
    Metric(
        "admission_rejections_total",
        "counter",
        "requests",
        "Requests refused before they ran.",
        _EDGE,
        ("reason",),
    ),
    Metric(
        "http_requests_in_flight", "gauge", "requests", "Requests admitted at the edge and not ended.", _EDGE
    ),
    Metric(
        "slow_readers_aborted_total", "counter", "requests", "Streams ended because nobody read them.", _EDGE
    ),
    Metric(
        "time_to_first_token_seconds", "histogram", "seconds", "Arrival to first token.", _EDGE, (), _FAST
    ),
    Metric(
        "inter_token_latency_seconds",
        "histogram",
        "seconds",
        "Between tokens of a sequence.",
        _EDGE,
        (),
        _FAST,
    ),
    Metric(
        "request_time_per_output_token_seconds",
        "histogram",
        "seconds",
        "(last token - first token) / (tokens - 1) of a request.",
        _EDGE,
        (),
        _FAST,
    ),
    Metric("e2e_request_latency_seconds", "histogram", "seconds", "Arrival to end.", _EDGE, (), _SLOW),
    Metric(
        "request_queue_time_seconds", "histogram", "seconds", "Arrival to the first step.", _EDGE, (), _SLOW
    ),
    Metric(
        "request_prefill_time_seconds", "histogram", "seconds", "First step to first token.", _EDGE, (), _SLOW
    ),
    Metric(
        "request_transfer_time_seconds", "histogram", "seconds", "KV on its way to decode.", _EDGE, (), _FAST
    ),
    Metric("request_decode_time_seconds", "histogram", "seconds", "KV in place to end.", _EDGE, (), _SLOW),
    Metric("request_inference_time_seconds", "histogram", "seconds", "First step to end.", _EDGE, (), _SLOW),
    Metric("request_prompt_tokens", "histogram", "tokens", "Prompt tokens of a request.", _EDGE, (), _TOKENS),
    Metric(
        "request_generation_tokens", "histogram", "tokens", "Output tokens of a request.", _EDGE, (), _TOKENS
    ),
    Metric("request_params_n", "histogram", "sequences", "Sequences asked for.", _EDGE, (), _SMALL),
    Metric("request_params_max_tokens", "histogram", "tokens", "Output bound asked for.", _EDGE, (), _TOKENS),
)
BY_NAME = {metric.name: metric for metric in TABLE}

_KEY = re.compile(r"([a-z0-9_]+)(?:\{([a-z_]+)=([^}]*)\})?")


def counter_key(name: str, label: str = "") -> str:
    """Key of a metric in `WorkerStats.counters`: the bare name, or `name{label_name=value}` for one with a
    label.
    """
    metric = BY_NAME[name]
    return f"{name}{{{metric.labels[0]}={label}}}" if metric.labels else name


class Metrics:
    """The edge's own counts, and a view on the workers' at the moment of the scrape."""

    def __init__(self, model_name: str) -> None:
        disable_created_metrics()  # or each series comes with a second one, its birthday
        self.model_name = model_name
        self.registry = CollectorRegistry()
        self._made: dict[str, Counter | Gauge | Histogram] = {}
        self._children: dict[tuple[str, ...], Counter | Gauge | Histogram] = {}
        for metric in TABLE:
            if metric.source == _EDGE:
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
        if metric.source == _WORKER:
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
    yield from _counters(stats.counters)


def _counters(counters: Mapping[str, float]) -> Iterator[tuple[str, str, float]]:
    for key, value in counters.items():
        match = _KEY.fullmatch(key)
        if match is None:
            continue
        metric = BY_NAME.get(match[1])
        if metric is not None and bool(metric.labels) == (match[2] is not None):
            yield metric.name, match[3] or "", value


def as_markdown() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` speaks the Prometheus text format. Generated from `mortice/obs/metrics.py`.",
        "",
        f"Every name has the prefix `{PREFIX}` and the label `model_name`. What workers count has the labels",
        "`worker` and `role` too, and starts again at zero when a worker does.",
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
