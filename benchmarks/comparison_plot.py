"""serve_cpu.py's result as a picture: rates as bars, latencies from median to 99th percentile."""

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

INK, FAINT, RULE = "#20242a", "#8a919c", "#eceff3"
OURS, PEER, MARK = "#1f6f8b", "#b6bcc6", "#c2502e"
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": "#c9ced6",
    "axes.labelcolor": FAINT,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "xtick.color": FAINT,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9.5,
    "svg.fonttype": "none",
}


def plot_comparison(document: dict[str, Any], path: Path) -> None:
    """One row of panels a concurrency: output rate, TTFT, TPOT. Dots on the bars are single rounds."""
    summary, settings = document["summary"], document["settings"]
    names = list(summary)[::-1]
    concurrencies = [str(c) for c in settings["concurrency"]]
    row_height = 0.34 * len(names) + 0.95
    height = 1.15 + row_height * len(concurrencies)
    rounds = max(s["rounds"] for s in summary.values())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(14.2, height), dpi=150, facecolor="white")
        grid = figure.add_gridspec(
            len(concurrencies),
            3,
            width_ratios=(1.25, 1, 1),
            left=0.285,
            right=0.975,
            top=1 - 1.2 / height,
            bottom=0.5 / height,
            hspace=0.42,
            wspace=0.1,
        )
        for i, concurrency in enumerate(concurrencies):
            rate, ttft, tpot = (figure.add_subplot(grid[i, j]) for j in range(3))
            users = "1 user" if concurrency == "1" else f"{concurrency} users at once"
            _rates(rate, document, names, concurrency, f"{users}: output tokens per second")
            _spans(ttft, document, names, concurrency, "ttft", "Time to first token, ms")
            _spans(tpot, document, names, concurrency, "tpot", "Time per output token, ms")
        machine = document["machine"]
        figure.text(
            0.015,
            1 - 0.32 / height,
            "One small model, one machine, several servers",
            fontsize=15,
            weight="bold",
        )
        figure.text(
            0.015,
            1 - 0.6 / height,
            f"SmolLM2-135M, {settings['input_len']} tokens in, {settings['output_len']} out, {machine['cores']} cores "
            f"of {machine['cpu']}, {document['rows'][0]['started_at'][:10]}. "
            f"{f'Medians of {rounds} interleaved rounds' if rounds > 1 else 'One round'}; lines run from p50 to p99.",
            fontsize=9.5,
            color=FAINT,
        )
        figure.savefig(path)


def _frame(axes: Any, names: list[str], labels: list[str] | None, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", pad=8)
    axes.set_yticks(range(len(names)), labels or [""] * len(names))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")


def _rates(axes: Any, document: dict[str, Any], names: list[str], concurrency: str, title: str) -> None:
    summary = document["summary"]
    _frame(axes, names, [summary[name]["label"] for name in names], title)
    values = [summary[name]["loads"][concurrency]["output_tokens_per_s"] or 0.0 for name in names]
    colours = [OURS if summary[name]["ours"] else PEER for name in names]
    axes.barh(range(len(names)), values, height=0.62, color=colours)
    right = max(values) * 1.2
    for y, (name, value) in enumerate(zip(names, values, strict=True)):
        rounds = [
            row["loads"][concurrency]["output_tokens_per_s"]
            for row in document["rows"]
            if row["server"] == name
        ]
        axes.plot(rounds, [y] * len(rounds), "o", ms=3.2, color=INK, mec="white", mew=0.5, zorder=4)
        place = max([value, *rounds]) + right * 0.012
        axes.text(place, y, f"{value:,.0f}", va="center", fontsize=9.5, weight="bold")
    axes.set_xlim(0, right)


def _spans(
    axes: Any, document: dict[str, Any], names: list[str], concurrency: str, kind: str, title: str
) -> None:
    summary = document["summary"]
    _frame(axes, names, None, title)
    axes.set_xscale("log")
    lows, highs = [], []
    for y, name in enumerate(names):
        load, colour = summary[name]["loads"][concurrency], OURS if summary[name]["ours"] else FAINT
        low, high = load[f"{kind}_p50_ms"], load[f"{kind}_p99_ms"]
        if low is None or high is None:
            continue
        lows.append(low)
        highs.append(high)
        axes.plot([low, high], [y, y], color=colour, lw=2.6, alpha=0.45, solid_capstyle="round")
        axes.plot([low], [y], "o", ms=6.5, color=colour, mec="white", mew=0.9)
        axes.plot([high], [y], "|", ms=9, mew=2, color=colour)
        axes.annotate(
            f"{low:,.0f}" if low >= 99.5 else f"{low:.1f}",
            (low, y),
            xytext=(-7, 0),
            textcoords="offset points",
            ha="right",
            va="center",
            fontsize=9,
        )
    if lows:
        axes.set_xlim(min(lows) / 2.2, max(highs) * 1.25)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
