"""The rows of the one table of metrics; metrics.py says what is made of them."""

from typing import Final, Literal

import msgspec

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
    key: str = ""  # its key in WorkerStats.counters, if that is not the name without `_total`


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
        "Prompt tokens whose KV was asked of another worker.",
        _WORKER,
    ),
    Metric(
        "external_prefix_cache_hits_total",
        "counter",
        "tokens",
        "Of these, tokens whose KV came.",
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
        "Between one forward pass and the next while there was work.",
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
        "spec_decode_num_draft_tokens_total",
        "counter",
        "tokens",
        "Draft tokens that were verified.",
        _WORKER,
        key="spec_proposed",
    ),
    Metric(
        "spec_decode_num_accepted_tokens_total",
        "counter",
        "tokens",
        "Draft tokens that were right.",
        _WORKER,
        key="spec_accepted",
    ),
    Metric(
        "estimated_flops_per_gpu_total",
        "counter",
        "FLOP",
        "Arithmetic of steps, attention over the context left out.",
        _WORKER,
    ),
    Metric(
        "estimated_read_bytes_per_gpu_total",
        "counter",
        "bytes",
        "Bytes steps had to read: all weights once a step, and KV.",
        _WORKER,
    ),
    Metric(
        "estimated_write_bytes_per_gpu_total", "counter", "bytes", "Bytes of KV that steps wrote.", _WORKER
    ),
    Metric(
        "kv_transfers_total",
        "counter",
        "transfers",
        "Prompts whose KV was copied from a peer.",
        _WORKER,
        key="kv_received",
    ),
    Metric(
        "kv_read_in_place_total",
        "counter",
        "requests",
        "Prompts whose KV was lent by a peer and read where it lies.",
        _WORKER,
        key="kv_read_in_place",
    ),
    Metric(
        "kv_transfer_failures_total",
        "counter",
        "transfers",
        "Prompts whose KV did not come.",
        _WORKER,
        key="kv_receive_failures",
    ),
    Metric(
        "kv_transfer_bytes_total",
        "counter",
        "bytes",
        "KV bytes read from or written to a peer.",
        _WORKER,
        key="kv_received_bytes",
    ),
    Metric(
        "kv_transfer_seconds_total",
        "counter",
        "seconds",
        "Time from asking for KV to having it.",
        _WORKER,
        key="kv_receive_seconds",
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
        key="leases_expired",
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
        "request_queue_time_seconds",
        "histogram",
        "seconds",
        "Arrival to being sent to a worker.",
        _EDGE,
        (),
        _SLOW,
    ),
    Metric(
        "request_prefill_time_seconds",
        "histogram",
        "seconds",
        "From there to the first token, the wait in the worker included.",
        _EDGE,
        (),
        _SLOW,
    ),
    Metric(
        "request_transfer_time_seconds", "histogram", "seconds", "KV on its way to decode.", _EDGE, (), _FAST
    ),
    Metric("request_decode_time_seconds", "histogram", "seconds", "KV in place to end.", _EDGE, (), _SLOW),
    Metric(
        "request_inference_time_seconds",
        "histogram",
        "seconds",
        "From being sent to a worker to the end.",
        _EDGE,
        (),
        _SLOW,
    ),
    Metric("request_prompt_tokens", "histogram", "tokens", "Prompt tokens of a request.", _EDGE, (), _TOKENS),
    Metric(
        "request_generation_tokens", "histogram", "tokens", "Output tokens of a request.", _EDGE, (), _TOKENS
    ),
    Metric("request_params_n", "histogram", "sequences", "Sequences asked for.", _EDGE, (), _SMALL),
    Metric("request_params_max_tokens", "histogram", "tokens", "Output bound asked for.", _EDGE, (), _TOKENS),
)
BY_NAME = {metric.name: metric for metric in TABLE}

BY_KEY = {
    metric.key or metric.name.removesuffix("_total"): metric for metric in TABLE if metric.source == _WORKER
}


def counter_key(name: str, label: str = "") -> str:
    """Key of a metric in `WorkerStats.counters`; one with a label has it after a colon:
    `step_host_seconds:sample`.
    """
    metric = BY_NAME[name]
    key = metric.key or metric.name.removesuffix("_total")
    return f"{key}:{label}" if metric.labels else key
