"""From timelines to the result document. Every figure's definition stands in docs/bench.md."""

from collections import Counter
from collections.abc import Sequence

from mortice.bench.load import LoadRun
from mortice.bench.stats import summary, wilson
from mortice.bench.timeline import Timeline
from mortice.specs.slo import SLO


def measure(run: LoadRun, slo: SLO, *, seed: int, intervals: bool = True) -> dict:
    """The measured half of a result.

    Latencies are of requests that ended well; counts, rates and attainment are over all that were issued.
    """
    good = [t for t in run.timelines if t.ok]
    bad = [t for t in run.timelines if not t.ok]
    duration_s = max(run.ended_s - run.started_s, 1e-9)
    lags = [(t.sent_s - t.due_s) * 1e3 for t in run.timelines if t.due_s is not None]

    def spread(values: Sequence[float]) -> dict:
        return summary(values, seed=seed, intervals=intervals)

    result = {
        "num_issued": len(run.timelines),
        "num_completed": len(good),
        "num_failed": len(bad),
        "failures": dict(Counter(t.failure for t in bad).most_common()),
        "failure_examples": {t.failure: t.detail for t in reversed(bad)},
        "stopped_early": run.stopped_early,
        "duration_s": duration_s,
        "requests_per_s": len(good) / duration_s,
        "output_tokens_per_s": sum(t.num_tokens for t in good) / duration_s,
        "input_tokens_per_s": sum(t.prompt_tokens or 0 for t in good) / duration_s,
        "peak_concurrency": peak_concurrency(run.timelines),
        "ttft_ms": spread([t.ttft_s * 1e3 for t in good]),
        "tpot_ms": spread([v * 1e3 for t in good if (v := t.tpot_s) is not None]),
        # Bootstrap treats draws as independent; gaps of one request are not, so ITL has no interval.
        "itl_ms": summary([gap * 1e3 for t in good for gap in t.itl_s()], seed=seed, intervals=False),
        "e2e_ms": spread([t.e2e_s * 1e3 for t in good]),
        "input_tokens": summary(
            [t.prompt_tokens for t in good if t.prompt_tokens], seed=seed, intervals=False
        ),
        "output_tokens": summary([t.num_tokens for t in good], seed=seed, intervals=False),
        "cached_input_tokens": sum(t.cached_tokens or 0 for t in good),
        "num_without_usage": sum(t.usage_tokens is None for t in good),
        "num_cut_short": sum(t.num_tokens < t.output_len for t in good),
        "send_lag_ms": summary(lags, seed=seed, intervals=False),
        "slo": attainment(run.timelines, slo),
    }
    return result


def attainment(timelines: Sequence[Timeline], slo: SLO) -> dict | None:
    """Share of all issued requests that met every limit, failures being misses; None if there is no limit.

    `marginals` has the same share for each limit alone. A joint share at the target implies the marginals,
    not the reverse. No request at all attains 0.
    """
    limits = slo.limits()
    if not limits:
        return None
    met, alone = 0, dict.fromkeys(limits, 0)
    for timeline in timelines:
        missed = missed_limits(timeline, slo)
        met += not missed
        for name in limits:
            alone[name] += name not in missed
    issued = len(timelines)
    low, high = wilson(met, issued)
    return {
        "limits": limits,
        "target": slo.target,
        "num_met": met,
        "attainment": share(met, issued),
        "ci95": (low, high),
        "marginals": {name: share(count, issued) for name, count in alone.items()},
        "reached": reached(met, issued, slo.target),
        "decided": not low < slo.target <= high,
    }


def missed_limits(timeline: Timeline, slo: SLO) -> list[str]:
    """Limits this request missed; a failed one missed all of them."""
    if not timeline.ok:
        return list(slo.limits())
    tpot = timeline.tpot_s
    return slo.missed(
        ttft_ms=timeline.ttft_s * 1e3,
        tpot_ms=None if tpot is None else tpot * 1e3,
        e2e_ms=timeline.e2e_s * 1e3,
    )


def share(count: int, total: int) -> float:
    return count / total if total else 0.0


def reached(met: int, issued: int, target: float) -> bool:
    """Is the share at least the target? Exactly at the target counts; rounding of the product must not
    decide."""
    return issued > 0 and met >= target * issued - 1e-9


def peak_concurrency(timelines: Sequence[Timeline]) -> int:
    """Most requests under way at one instant; one that ends as another starts makes room for it."""
    edges = sorted([(t.sent_s, 1) for t in timelines] + [(t.ended_s, -1) for t in timelines])
    running = most = 0
    for _, step in edges:
        running += step
        most = max(most, running)
    return most


def token_rate(timelines: Sequence[Timeline], started_s: float, ended_s: float, num_bins: int) -> list[float]:
    """Output tokens a second in equal bins from start to end, from the arrival of each chunk."""
    width = max(ended_s - started_s, 1e-9) / num_bins
    bins = [0.0] * num_bins
    for timeline in timelines:
        for instant, count in zip(timeline.chunk_s, timeline.tokens_by_chunk(), strict=True):
            bins[min(num_bins - 1, max(0, int((instant - started_s) / width)))] += count / width
    return bins


def request_record(timeline: Timeline, started_s: float) -> dict:
    """One request for the per-request list of a result file; instants in seconds from the start of the
    run."""
    t = timeline
    record = {
        "index": t.index,
        "sent_s": round(t.sent_s - started_s, 6),
        "ended_s": round(t.ended_s - started_s, 6),
        "asked_input_tokens": t.prompt_len,
        "asked_output_tokens": t.output_len,
        "input_tokens": t.prompt_tokens,
        "cached_input_tokens": t.cached_tokens,
        "output_tokens": t.num_tokens,
        "finish_reason": t.finish_reason,
        "chunk_s": [round(c - started_s, 6) for c in t.chunk_s],
        "chunk_tokens": t.tokens_by_chunk(),
    }
    if t.due_s is not None:
        record["due_s"] = round(t.due_s - started_s, 6)
    if t.ok:
        record |= {"ttft_ms": t.ttft_s * 1e3, "tpot_ms": t.tpot_s and t.tpot_s * 1e3, "e2e_ms": t.e2e_s * 1e3}
    else:
        record |= {"failure": t.failure, "detail": t.detail}
    return record
