"""One run as a picture: who waited how long for the first token and for each next one, and how fast tokens
came."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mortice.bench.load import LoadRun
from mortice.bench.report import token_rate
from mortice.bench.show import describe_load, number
from mortice.specs.errors import RequestError

_INK, _FAINT, _CURVE, _LIMIT = "#20242a", "#8a919c", "#1f6f8b", "#c2502e"
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": "#c9ced6",
    "axes.labelcolor": _FAINT,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eceff3",
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "svg.fonttype": "none",
}


def plot_format(path: Path) -> str:
    """png or svg, by the file's name. Raises RequestError for another, and where matplotlib is not
    installed."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise RequestError(f"--plot writes .png or .svg, not {path.name}", param="--plot")
    try:
        import matplotlib as _  # noqa: F401  optional: only plots need it
    except ImportError as error:
        raise RequestError("--plot needs matplotlib: pip install 'mortice[bench]'", param="--plot") from error
    return kind


def plot_run(result: dict[str, Any], run: LoadRun, path: Path) -> None:
    """Write the picture of a run. Raises RequestError if the file cannot be written."""
    kind = plot_format(path)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 7.0), dpi=160, facecolor="white")
        grid = figure.add_gridspec(
            2,
            2,
            height_ratios=(1.25, 1),
            hspace=0.5,
            wspace=0.16,
            left=0.075,
            right=0.965,
            top=0.815,
            bottom=0.085,
        )
        limits = (result["slo"] or {}).get("limits", {})
        good = [t for t in run.timelines if t.ok]
        tpots = [t.tpot_s for t in good]
        first, each, rate = (figure.add_subplot(s) for s in (grid[0, 0], grid[0, 1], grid[1, :]))
        issued = len(run.timelines)
        _ecdf(first, "Time to first token", [t.ttft_s * 1e3 for t in good], 0, issued, limits.get("ttft_ms"))
        known = [t * 1e3 for t in tpots if t is not None]
        _ecdf(each, "Time per output token", known, tpots.count(None), issued, limits.get("tpot_ms"))
        first.set_ylabel("share of issued requests")
        each.tick_params(labelleft=False)
        _timeline(rate, run)
        figure.text(0.075, 0.955, str(result["model"]), fontsize=15, fontweight="bold", va="center")
        figure.text(0.075, 0.918, _subtitle(result), fontsize=9.5, color=_FAINT, va="center")
        try:
            figure.savefig(path, format=kind)
        except OSError as error:
            raise RequestError(f"cannot write {path}: {error.strerror}", param="--plot") from error


def _subtitle(result: dict[str, Any]) -> str:
    parts = [describe_load(result["workload"]), f"{number(result['output_tokens_per_s'])} output tokens/s"]
    if result["num_failed"]:
        parts.append(f"{result['num_failed']} failed")
    if result["slo"]:
        parts.append(f"SLO attainment {result['slo']['attainment']:.0%}")
    return "  ·  ".join(parts)


def _ecdf(
    axes: Any, title: str, values: Sequence[float], num_free: int, issued: int, limit: float | None
) -> None:
    """Cumulative share of all issued requests: a failed one never arrives, so the curve then ends below 1.

    `num_free` requests have no value and meet any limit (TPOT of a single token): the curve starts at their
    share.
    """
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=22)
    axes.set_xlabel("ms")
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_yticks([0, 0.25, 0.5, 0.75, 0.9, 1.0])
    if not values:
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color=_FAINT)
        return
    ordered = sorted(values)
    shares = [(num_free + i + 1) / issued for i in range(len(ordered))]
    right = max(ordered[-1], limit or 0) * 1.12
    xs, ys = [ordered[0], *ordered, right], [num_free / issued, *shares, shares[-1]]
    axes.step(xs, ys, where="post", color=_CURVE, linewidth=2)
    axes.fill_between(xs, ys, step="post", color=_CURVE, alpha=0.08, linewidth=0)
    axes.set_xlim(0, right)
    for quantile in (0.5, 0.9, 0.99):
        rank = next((i for i, share in enumerate(shares) if share >= quantile), None)
        if rank is not None:
            _mark(axes, ordered[rank], shares[rank], f"{quantile:.0%} by {number(ordered[rank])}", right)
    if limit is not None:
        met = (num_free + sum(value <= limit for value in ordered)) / issued
        axes.axvline(limit, color=_LIMIT, linewidth=1.4, linestyle=(0, (4, 2)))
        place = "left" if limit < right * 0.25 else "right" if limit > right * 0.75 else "center"
        axes.annotate(
            f"SLO {limit:g} ms, {met:.0%} meet it",
            (limit, 1.04),
            xytext=(0, 4),
            textcoords="offset points",
            ha=place,
            va="bottom",
            color=_LIMIT,
            fontsize=9,
        )


def _mark(axes: Any, x: float, y: float, label: str, right: float) -> None:
    axes.plot([x], [y], "o", markersize=5, color=_CURVE, markeredgecolor="white", markeredgewidth=1, zorder=5)
    beyond = x < right * 0.62
    axes.annotate(
        label,
        (x, y),
        xytext=(8 if beyond else -8, -11 if beyond else 3),
        textcoords="offset points",
        ha="left" if beyond else "right",
        va="center",
        fontsize=9,
        bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )


def _timeline(axes: Any, run: LoadRun) -> None:
    seconds = run.ended_s - run.started_s
    num_bins = max(20, min(160, round(2 * seconds)))
    rates = token_rate(run.timelines, run.started_s, run.ended_s, num_bins)
    edges = [i * seconds / num_bins for i in range(num_bins + 1)]
    axes.set_title("Output tokens per second", loc="left", fontsize=11, fontweight="bold", pad=10)
    axes.set_xlabel("seconds since the start")
    axes.stairs(rates, edges, baseline=None, color=_CURVE, linewidth=1.6)
    axes.stairs(rates, edges, fill=True, color=_CURVE, alpha=0.12)
    axes.set_xlim(0, seconds)
    axes.set_ylim(0, max([*rates, 1.0]) * 1.18)
    failed = [t.ended_s - run.started_s for t in run.timelines if not t.ok]
    if failed:
        axes.plot(failed, [0.0] * len(failed), "x", color=_LIMIT, markersize=6, clip_on=False, zorder=6)
        axes.annotate(
            "× failed requests",
            (1, 1),
            xycoords="axes fraction",
            ha="right",
            va="top",
            color=_LIMIT,
            fontsize=9,
        )
