"""pd_interference.py's result as a picture: every token's gap, with the tail at full size."""

import math
from pathlib import Path
from typing import Any

import matplotlib
from comparison_plot import FAINT, INK, OURS, RULE, STYLE
from matplotlib.figure import Figure

COLOURS = {"pd": OURS, "colocated": "#c2502e"}
LEVELS = (0.0, 0.5, 0.9, 0.99, 0.999)


def plot_interference(document: dict[str, Any], labels: dict[str, str], path: Path) -> None:
    """Left: ECDF of ITL, dashed without long prompts. Right: TTFT of both classes, one dot a request."""
    rows = document["rows"]
    workload, machine = document["workload"], document["machine"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12.4, 5.9), dpi=150, facecolor="white")
        grid = figure.add_gridspec(
            2,
            2,
            width_ratios=(1.55, 1),
            left=0.06,
            right=0.98,
            top=0.775,
            bottom=0.1,
            wspace=0.14,
            hspace=0.62,
        )
        _gaps(figure.add_subplot(grid[:, 0]), rows)
        _first_tokens(figure.add_subplot(grid[0, 1]), rows, "streams", "Streams: time to first token, ms")
        _first_tokens(figure.add_subplot(grid[1, 1]), rows, "long", "Long prompts: time to first token, ms")
        figure.text(
            0.015, 0.945, "Long prompts beside running streams", fontsize=15, weight="bold", va="center"
        )
        streams, long = workload["streams"], workload["long"]
        figure.text(
            0.015,
            0.9,
            f"{streams['concurrency']} streams of {streams['output_len']} tokens; prompts of {long['input_len'][0]:,} to "
            f"{long['input_len'][1]:,} tokens, {long['rate']:g} a second. SmolLM2-135M in bf16, {machine['cores']} cores "
            f"of {machine['cpu']}, {rows[0]['started_at'][:10]}",
            fontsize=9.5,
            color=FAINT,
            va="center",
        )
        x = 0.0155
        for name, label in labels.items():
            figure.text(x, 0.853, "\u25cf", color=COLOURS[name], fontsize=12, va="center")
            figure.text(x + 0.0135, 0.853, label, fontsize=10.5, va="center")
            x += 0.022 + 0.0064 * len(label)
        figure.text(x, 0.853, "dashed: no long prompts", fontsize=9.5, color=FAINT, va="center")
        figure.savefig(path)


def height_of(share: float, count: int) -> float:
    """Nines: 0 at 0 %, 1 at 90 %, 2 at 99 %, 3 at 99.9 %. The last of `count` stands where half a token is left."""
    return -math.log10(max(1.0 - share, 0.5 / count))


def _gaps(axes: Any, rows: list[dict[str, Any]]) -> None:
    axes.set_title("Streams: gap before each token, ms", loc="left", fontsize=10.5, fontweight="bold", pad=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.set_yticks([height_of(level, 10**9) for level in LEVELS], [f"{level:.4g}" for level in LEVELS])
    axes.set_yticklabels([f"{level * 100:g} %" for level in LEVELS])
    axes.grid(axis="both", color=RULE)
    top = 0.0
    for name, colour in COLOURS.items():
        for part, style in (("quiet", (0, (3, 2))), ("streams", "solid")):
            gaps = sorted(g for row in rows if row["layout"] == name for g in row[part]["itl_ms"])
            if not gaps:
                continue
            count = len(gaps)
            heights = [height_of((i + 1) / count, count) for i in range(count)]
            loud = part == "streams"
            axes.step(
                gaps,
                heights,
                where="post",
                color=colour,
                ls=style,
                lw=2.2 if loud else 1.2,
                alpha=1 if loud else 0.6,
            )
            top = max(top, heights[-1])
            if loud:
                for level in (0.5, 0.99):
                    gap = gaps[min(count - 1, math.ceil(level * count) - 1)]
                    _label(axes, gap, height_of(level, 10**9), gap, colour, right=name == "colocated")
    axes.set_ylim(0, max(top, 2.2) + 0.1)
    axes.set_ylabel("share of tokens that came within")


def _label(axes: Any, x: float, y: float, value: float, colour: str, *, right: bool) -> None:
    axes.plot([x], [y], "o", ms=6, color=colour, mec="white", mew=1, zorder=5)
    axes.annotate(
        f"{value:,.0f} ms",
        (x, y),
        xytext=(8 if right else -8, -9 if right else 9),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        fontsize=9.5,
        color=colour,
        weight="bold",
        bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        zorder=6,
    )


def _first_tokens(axes: Any, rows: list[dict[str, Any]], part: str, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold", pad=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_minor_formatter(lambda value, _: "")
    axes.grid(axis="x")
    names = list(COLOURS)[::-1]
    axes.set_yticks(range(len(names)), ["P/D" if name == "pd" else name for name in names])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(-0.6, len(names) - 0.3)
    for y, name in enumerate(names):
        values = sorted(v for row in rows if row["layout"] == name for v in row[part]["ttft_ms"])
        if not values:
            continue
        spread = [y + 0.13 * math.sin(2.4 * i) for i in range(len(values))]
        axes.plot(values, spread, "o", ms=4, color=COLOURS[name], alpha=0.45, mew=0)
        middle = values[len(values) // 2]
        axes.plot([middle] * 2, [y - 0.27, y + 0.27], color=INK, lw=1.8, solid_capstyle="butt")
        axes.text(middle, y + 0.31, f"{middle:,.0f}", ha="center", va="bottom", fontsize=9.5, weight="bold")
