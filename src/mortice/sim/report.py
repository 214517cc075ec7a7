"""What a simulated run says of itself: latencies, attainment over all issued requests, accelerator hours, actions."""

from collections import Counter
from collections.abc import Sequence

from mortice.sim.cluster import Cluster
from mortice.sim.request import SimRequest
from mortice.sim.summary import percentiles, share_interval
from mortice.specs.slo import SLO


def met(request: SimRequest, slo: SLO) -> tuple[bool, bool]:
    """(TTFT, TPOT) within their limits, inclusive. A request that did not finish met neither; TPOT of one token is undefined
    and meets."""
    if request.stage != "finished":
        return False, False
    tpot_s = request.tpot_s
    first = slo.ttft_ms is None or request.ttft_s * 1e3 <= slo.ttft_ms
    return first, slo.tpot_ms is None or tpot_s is None or tpot_s * 1e3 <= slo.tpot_ms


def attainment(requests: Sequence[SimRequest], slo: SLO) -> float:
    """Share of all requests that met both; 0 if there were none."""
    return sum(all(met(r, slo)) for r in requests) / len(requests) if requests else 0.0


def report(cluster: Cluster, slo: SLO) -> dict:
    """The run as JSON-like values. `attainment_ci95` is Wilson's interval: two runs whose intervals overlap are tied."""
    requests = cluster.requests
    judged = [met(r, slo) for r in requests]
    first, rest, both = (sum(column) for column in zip(*((a, b, a and b) for a, b in judged), strict=True))
    total, done = len(requests), [r for r in requests if r.stage == "finished"]
    span_s = max((r.end_s for r in done), default=0.0) - requests[0].arrival_s
    kinds = Counter(type(a).__name__.lower() for d in cluster.decisions for a in d.actions)
    outcomes = Counter(r.stage for r in requests)
    tpot = [t for r in done if (t := r.tpot_s) is not None]
    return {
        "requests": total,
        "finished": outcomes["finished"],
        "rejected": outcomes["rejected"],
        "cancelled": outcomes["cancelled"],
        "duration_s": span_s,
        "ttft_ms": percentiles([r.ttft_s * 1e3 for r in done]),
        "tpot_ms": percentiles([t * 1e3 for t in tpot]),
        "e2e_ms": percentiles([(r.end_s - r.arrival_s) * 1e3 for r in done]),
        "attainment_ttft": first / total,
        "attainment_tpot": rest / total,
        "attainment": both / total,
        "attainment_ci95": share_interval(both, total),
        "goodput_rps": both / span_s if span_s > 0 else 0.0,
        "output_tokens_per_s": sum(r.given for r in done) / span_s if span_s > 0 else 0.0,
        "gpu_hours": cluster.gpu_s / 3600,
        "max_gpus": cluster.max_gpus,
        "preemptions": sum(w.num_preemptions for w in cluster.workers.values()),
        "recomputed": cluster.num_recomputed,
        "actions": {name: kinds[name] for name in ("flip", "start", "stop", "undrain")},
        "workers_at_end": {
            role: list(cluster.roles.values()).count(role) for role in ("prefill", "decode", "mixed")
        },
        "events": cluster.clock.num_events,
    }
