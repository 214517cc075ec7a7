"""Two results side by side: a difference counts only where the intervals part."""

from pathlib import Path
from typing import Any

import msgspec

from mortice.bench.stats import overlap
from mortice.specs.errors import RequestError

_LATENCIES = ("ttft_ms", "tpot_ms", "e2e_ms")
_FIGURES = ("mean", "p50", "p90", "p99")


def load_result(path: str | Path) -> dict[str, Any]:
    """A result that --json or --output wrote. Raises RequestError if the file is none."""
    try:
        document = msgspec.json.decode(Path(path).read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise RequestError(f"cannot read {path}: {reason}", param="--compare") from error
    if not isinstance(document, dict) or document.get("kind") not in ("bench", "goodput"):
        raise RequestError(f"{path} is no result of mortice bench", param="--compare")
    return document


def compare(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Rows of both results, each with a verdict: tied, a or b (which is better), or null (no interval to
    judge by).

    Raises RequestError if the two are of different kinds.
    """
    if a["kind"] != b["kind"]:
        raise RequestError(f"cannot compare a {a['kind']} with a {b['kind']} result", param="--compare")
    rows = _goodput_rows(a, b) if a["kind"] == "goodput" else _bench_rows(a, b)
    notes = [f"{name} differs: {one!r} and {two!r}" for name, one, two in _differences(a, b)]
    notes += [
        f"{name} is void: its client was the bottleneck" for name, r in (("A", a), ("B", b)) if r.get("void")
    ]
    return {"kind": "comparison", "rows": rows, "notes": notes}


def _bench_rows(a: dict, b: dict) -> list[dict]:
    rows = []
    for metric in _LATENCIES:
        for figure in _FIGURES:
            one, two = a[metric], b[metric]
            spans = [r.get("ci95", {}).get(figure) for r in (one, two)]
            rows.append(_row(f"{metric} {figure}", one[figure], two[figure], spans, lower_is_better=True))
    if a.get("slo") and b.get("slo"):
        spans = [a["slo"]["ci95"], b["slo"]["ci95"]]
        rows.append(_row("slo attainment", a["slo"]["attainment"], b["slo"]["attainment"], spans))
    for figure in ("output_tokens_per_s", "requests_per_s"):
        rows.append(_row(figure, a[figure], b[figure], [None, None]))
    return rows


def _goodput_rows(a: dict, b: dict) -> list[dict]:
    rows = []
    for figure, divide in (("sustained_rate", False), ("goodput_per_gpu", True)):
        spans = []
        for result in (a["goodput"], b["goodput"]):
            gpus = result["num_gpus"] if divide else 1
            upper = result["first_failed_rate"]
            spans.append(None if upper is None else (result["sustained_rate"] / gpus, upper / gpus))
        rows.append(_row(figure, a["goodput"][figure], b["goodput"][figure], spans))
    return rows


def _row(name: str, a: float | None, b: float | None, spans: list, *, lower_is_better: bool = False) -> dict:
    verdict = None
    if a is not None and b is not None and None not in spans:
        if overlap(tuple(spans[0]), tuple(spans[1])):
            verdict = "tied"
        else:
            verdict = "a" if (a < b) == lower_is_better else "b"
    ratio = b / a if a and b is not None else None
    return {
        "name": name,
        "a": a,
        "b": b,
        "b_over_a": ratio,
        "ci95_a": spans[0],
        "ci95_b": spans[1],
        "better": verdict,
    }


def _differences(a: dict, b: dict) -> list[tuple[str, Any, Any]]:
    """What was not the same in the two runs and should have been."""
    pairs = {name: (a.get(name), b.get(name)) for name in ("model", "api")}
    for part in ("workload", "request"):
        one, two = a.get(part, {}), b.get(part, {})
        pairs |= {
            f"{part}.{name}": (one.get(name), two.get(name)) for name in {*one, *two} if name != "prompts"
        }
    if a.get("slo") and b.get("slo"):
        pairs["slo.limits"] = (a["slo"]["limits"], b["slo"]["limits"])
    return [(name, one, two) for name, (one, two) in sorted(pairs.items()) if one != two]
