"""Charts drawn with matplotlib: a file for `--plot`, or SVG for the page, whose colours are then CSS variables."""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mortice.plan.answer import Bars, Chart, Gantt, Lines, Mark
from mortice.specs.errors import RequestError

# Colours of the file; on the page each becomes the CSS variable of that name, so that it follows light and dark.
INK, FAINT, GRID, PAPER, LIMIT = "#20242a", "#767e89", "#e6e9ee", "#ffffff", "#c2502e"
PALETTE = ("#1f6f8b", "#d08c2f", "#5b8c5a", "#8a5a9c", "#b5485d", "#4f5d75", "#3aa6a0", "#9a7b4f", "#6c8ebf")
VARIABLES = {INK: "ink", FAINT: "faint", GRID: "grid", PAPER: "paper", LIMIT: "limit"} | {
    colour: f"c{i}" for i, colour in enumerate(PALETTE)
}
_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.facecolor": PAPER,
    "axes.edgecolor": GRID,
    "axes.labelcolor": FAINT,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "mortice",
}
_WIDTH = 9.0
MARKERS = "oD^sv"
_LABEL = {"boxstyle": "square,pad=0.15", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.85}
_NARROW = 0.012  # share of the chart below which a span has no room for its label


def plot_format(path: Path) -> str:
    """png or svg, by the file's name. Raises RequestError for another, and where matplotlib is not installed."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        raise RequestError(f"--plot writes .png or .svg, not {path.name}", param="--plot")
    if not path.absolute().parent.is_dir():
        raise RequestError(f"--plot: there is no folder {path.parent}", param="--plot")
    _matplotlib("--plot")
    return kind


def save(charts: Sequence[Chart], title: str, path: Path) -> None:
    """All charts below each other in one picture. Raises RequestError if the file cannot be written."""
    kind = plot_format(path)
    if not charts:
        raise RequestError("--plot: this answer has no chart", param="--plot")
    heights = [_height(chart) for chart in charts]
    matplotlib, figure_type = _matplotlib("--plot")
    with matplotlib.rc_context(_STYLE):
        figure = figure_type(
            figsize=(_WIDTH, sum(heights) + 0.5), dpi=160, facecolor=PAPER, layout="constrained"
        )
        figure.suptitle(title, fontsize=14, fontweight="bold", x=0.012, ha="left")
        axes = figure.subplots(len(charts), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axis, chart in zip(axes, charts, strict=True):
            _draw(axis, chart)
        try:
            figure.savefig(path, format=kind, metadata={"Date": None} if kind == "svg" else None)
        except OSError as error:
            raise RequestError(f"cannot write {path}: {error.strerror}", param="--plot") from error


def svg(chart: Chart) -> str:
    """One chart as an SVG element for a page: colours are `var(--name)`, no size of its own, ids made unique."""
    matplotlib, figure_type = _matplotlib("--out")
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": chart.title}):
        figure = figure_type(figsize=(_WIDTH, _height(chart)), facecolor="none", layout="constrained")
        axis = figure.subplots()
        _draw(axis, chart)
        axis.set_facecolor("none")
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # matplotlib names groups alike in every picture; on one page they must differ.
    tag = re.sub(r"\W+", "-", chart.title.lower()).strip("-")
    text = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{tag}-", text)
    return re.sub(r"#[0-9a-f]{6}", lambda m: f"var(--{VARIABLES[m[0]]})" if m[0] in VARIABLES else m[0], text)


def _matplotlib(option: str) -> tuple[Any, Any]:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RequestError(f"{option} needs matplotlib: pip install 'mortice[plan]'", param=option) from error
    return matplotlib, Figure


def _height(chart: Chart) -> float:
    if isinstance(chart, Bars):
        return 1.5 + 0.33 * len(chart.labels)
    if isinstance(chart, Gantt):
        return 1.25 + 0.5 * len(chart.lanes)
    return 4.4


def _draw(axis: Any, chart: Chart) -> None:
    axis.set_title(chart.title, loc="left", fontsize=11, fontweight="bold", pad=8)
    axis.set_xlabel(chart.x_label)
    if isinstance(chart, Lines):
        _lines(axis, chart)
    elif isinstance(chart, Bars):
        _bars(axis, chart)
    else:
        _gantt(axis, chart)


def _colour(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def _lines(axis: Any, chart: Lines) -> None:
    axis.set_ylabel(chart.y_label)
    if chart.log_x:
        axis.set_xscale("log")
    if chart.log_y:
        axis.set_yscale("log")
    for i, series in enumerate(chart.series):
        # Where there are more series than colours the marker tells them apart.
        marker = MARKERS[i // len(PALETTE) % len(MARKERS)]
        style = (
            {"marker": marker, "linestyle": "none", "markersize": 6} if series.points else {"linewidth": 2}
        )
        axis.plot(series.xs, series.ys, color=_colour(i), label=series.label, **style)
    for i, mark in enumerate(chart.marks):
        _mark(axis, mark, i)
    if chart.series:
        outside = len(chart.series) > 4
        axis.legend(loc="center left" if outside else "best", bbox_to_anchor=(1.0, 0.5) if outside else None)


def _bars(axis: Any, chart: Bars) -> None:
    rows = range(len(chart.labels))
    left = [0.0] * len(chart.labels)
    for i, (name, values) in enumerate(chart.parts):
        axis.barh(rows, values, left=left, color=_colour(i), label=name, height=0.68)
        left = [a + b for a, b in zip(left, values, strict=True)]
    axis.set_yticks(rows, chart.labels)
    axis.tick_params(axis="y", labelcolor=INK, length=0)
    axis.set_ylim(len(chart.labels) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")
    marked = [mark.x for mark in chart.marks if mark.x is not None]
    axis.set_xlim(0, max([*left, *marked, 1e-12]) * 1.12)
    for i, mark in enumerate(chart.marks):
        _mark(axis, mark, i)
    if len(chart.parts) > 1:
        axis.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=len(chart.parts), borderaxespad=0.2)


def _gantt(axis: Any, chart: Gantt) -> None:
    row = {lane: i for i, lane in enumerate(chart.lanes)}
    length = max((span.end for span in chart.spans), default=0.0)
    seen: set[int] = set()
    for span in chart.spans:
        label = f"{chart.colour_name} {span.colour}" if span.colour not in seen else None
        seen.add(span.colour)
        axis.barh(
            row[span.lane],
            span.end - span.start,
            left=span.start,
            height=0.72,
            color=_colour(span.colour),
            edgecolor=PAPER,
            linewidth=0.8,
            label=label,
        )
        if span.label and span.end - span.start > _NARROW * length:
            middle = (span.start + span.end) / 2
            axis.text(middle, row[span.lane], span.label, ha="center", va="center", fontsize=7, color=PAPER)
    axis.set_yticks(range(len(chart.lanes)), chart.lanes)
    axis.tick_params(axis="y", labelcolor=INK, length=0)
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    for i, mark in enumerate(chart.marks):
        _mark(axis, mark, i)
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _mark(axis: Any, mark: Mark, turn: int) -> None:
    """A point with its name, or a dashed line across. `turn` staggers the labels of neighbours."""
    if mark.x is not None and mark.y is not None:
        axis.plot([mark.x], [mark.y], "o", color=LIMIT, markersize=5, zorder=5)
        axis.annotate(
            mark.label, (mark.x, mark.y), xytext=(6, 4), textcoords="offset points", fontsize=8.5, color=INK
        )
    elif mark.x is not None:
        axis.axvline(mark.x, color=LIMIT, linewidth=1.1, linestyle=(0, (4, 2)))
        axis.annotate(
            mark.label,
            (mark.x, 0.98 - 0.09 * (turn % 6)),
            xycoords=("data", "axes fraction"),
            xytext=(4, 0),
            textcoords="offset points",
            va="top",
            fontsize=8.5,
            color=LIMIT,
            bbox=_LABEL,
        )
    elif mark.y is not None:
        axis.axhline(mark.y, color=LIMIT, linewidth=1.1, linestyle=(0, (4, 2)))
        axis.annotate(
            mark.label,
            (0.99, mark.y),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8.5,
            color=LIMIT,
            bbox=_LABEL,
        )
