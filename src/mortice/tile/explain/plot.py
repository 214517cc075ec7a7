"""A picture: how a tile lies in memory, and when a pipelined loop copies and computes. Needs matplotlib."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mortice.tile.explain.report import Report
from mortice.tile.explain.timeline import Timeline, timeline
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import walk
from mortice.tile.passes import run
from mortice.tile.passes.cpu import cpu_passes
from mortice.tile.passes.gpu.tiles import swizzle_for
from mortice.tile.passes.tiling import GPU, tiling

ROWS = 16  # of a tile that are drawn
SHADES = ("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bbbbbb", "#775533")


def draw(report: Report, name: str, path: Path) -> None:
    """Writes a PNG."""
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
    _layout(left, report)
    overlaps = report.target != "c"
    found = timeline(report.function, report.dims, report.machine, overlaps)
    if found is None:
        right.text(0.5, 0.5, "no pipelined loop", ha="center", va="center")
        right.set_axis_off()
    else:
        _timeline(right, found, overlaps)
    p, where = report.prediction, report.machine.name if overlaps else "this CPU"
    bound = f"bound {p.bound * 1e3:.3g} ms by {p.bound_by}, this schedule {p.seconds * 1e3:.3g} ms (model)"
    figure.suptitle(f"{name} on {where}: {bound}", fontsize=11)
    figure.savefig(path, dpi=110)


def _layout(axes: Any, report: Report) -> None:
    if report.target == "c":
        _panels(axes, report)
    else:
        _swizzle(axes, report)


def _swizzle(axes: Any, report: Report) -> None:
    """16-byte chunks of the first shared tile: where each lies in its row, coloured by the banks it meets."""
    tiles = [x.buffer for x in walk(run(report.function, (tiling(GPU),)).body) if isinstance(x, s.Alloc)]
    shared = [x for x in tiles if x.scope == "shared" and len(x.extents) == 2]
    if not shared:
        axes.text(0.5, 0.5, "no shared tile", ha="center", va="center")
        axes.set_axis_off()
        return
    tile = shared[0]
    width = swizzle_for(tile.extents[1], tile.extents[0], tile.dtype)
    line = width or min(128, tile.extents[1] * tile.dtype.bytes)
    chunks, rows = line // 16, min(ROWS, tile.extents[0])
    for row in range(rows):
        for chunk in range(chunks):
            phase = row // (8 // chunks) % chunks if width else 0
            place = chunk ^ phase
            _cell(axes, place, row, SHADES[chunk % 8], str(chunk))
    kind = f"{width}-byte swizzle" if width else "plain rows"
    axes.set_title(f"shared tile {tile.name} {list(tile.extents)} {tile.dtype}: {kind}", fontsize=10)
    axes.set_xlabel("place in the row, 16 bytes each (number: the chunk that lies there)")
    _frame(axes, chunks, rows)


def _panels(axes: Any, report: Report) -> None:
    """The order in memory of a packed operand, or of the first tile if none is packed."""
    packed = [x.buffer for x in walk(run(report.function, cpu_passes(True)).body) if isinstance(x, s.Alloc)]
    if not packed:
        axes.text(0.5, 0.5, "no tile", ha="center", va="center")
        axes.set_axis_off()
        return
    tile = next((x for x in packed if x.scope.startswith("panels")), packed[0])
    shape = (*tile.extents, 1)[:2]
    rows, columns = min(64, shape[0]), min(128, shape[1])
    i, j = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    depth = 64 // tile.dtype.bytes
    if tile.scope == "panels_a":
        order = (i // 16) * 16 * shape[1] + (j // depth) * 16 * depth + (i % 16) * depth + j % depth
        what = f"blocks of 16 rows x {depth}, one after the other"
    elif tile.scope.startswith("panels_b"):
        k, n = (j, i) if tile.scope.endswith("turned") else (i, j)
        deep = shape[1] if tile.scope.endswith("turned") else shape[0]
        order, what = (n // 32) * 32 * deep + k * 32 + n % 32, "panels of 32 columns of the product"
    else:
        order, what = i * shape[1] + j, "row after row"
    axes.imshow(order, aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set_title(f"tile {tile.name} {list(tile.extents)} {tile.dtype}: {what}", fontsize=10)
    axes.set_xlabel("column (colour: place in memory, dark first)")
    axes.set_ylabel("row")


def _timeline(axes: Any, found: Timeline, overlaps: bool) -> None:
    scale = 1e6
    for bar in found.bars:
        y = (
            (found.stages - bar.slot if bar.who == "copy" else 0)
            if overlaps
            else (1 if bar.who == "copy" else 0)
        )
        colour = SHADES[bar.slot % 8] if bar.who == "copy" else "#dddddd"
        axes.barh(
            y,
            (bar.end - bar.start) * scale,
            left=bar.start * scale,
            height=0.7,
            color=colour,
            edgecolor="black",
            linewidth=0.5,
        )
        axes.text(
            (bar.start + bar.end) / 2 * scale,
            y,
            str(bar.iteration),
            ha="center",
            va="center",
            fontsize=7,
            clip_on=True,
        )
    slots = [f"copy, slot {i}" for i in reversed(range(found.stages))] if overlaps else ["copy"]
    axes.set_yticks(range(len(slots) + 1), ["compute", *slots])
    span = found.loop.span
    axes.set_title(
        f"loop at {Path(span.file).name}:{span.line}, {found.stages} stages, as the model sees it",
        fontsize=10,
    )
    axes.set_xlabel("µs (numbers: iterations)")


def _cell(axes: Any, x: int, y: int, colour: str, text: str) -> None:
    axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white"))
    axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=8, color="white")


def _frame(axes: Any, columns: int, rows: int) -> None:
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    axes.set_ylabel("row")
    axes.set_xticks(np.arange(columns) + 0.5, range(columns))
    axes.set_yticks(np.arange(rows) + 0.5, range(rows))
