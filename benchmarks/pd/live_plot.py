"""live_policies.py's result as a picture: attainment of each way, live and simulated, and the waits behind it.

.venv/bin/python benchmarks/pd/live_plot.py build/pd-live.json docs/images/pd-live.png
"""

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

INK, FAINT, LIVE, SIMULATED, LIMIT = "#20242a", "#8a919c", "#1f6f8b", "#b6bcc6", "#c2502e"
PANELS = (
    ("share of requests within both limits", lambda of: of["attainment"], None),
    ("TTFT, 90th percentile, s", lambda of: of["ttft_ms"]["p90"] / 1e3, 2.0),
    ("TPOT, 90th percentile, ms", lambda of: of["tpot_ms"]["p90"], 80.0),
)
LONGEST = {1: 6.0, 2: 160.0}  # where an axis ends; longer bars are cut and say their length


def plot(ways: dict[str, dict], path: Path) -> None:
    names = list(ways)[::-1]
    with matplotlib.rc_context({"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12.5, 3.9), dpi=150, facecolor="white")
        for number, (title, value, limit) in enumerate(PANELS):
            axes = figure.add_subplot(1, 3, number + 1)
            for offset, kind, colour in ((0.19, "live", LIVE), (-0.19, "simulated", SIMULATED)):
                for row, name in enumerate(names):
                    length = value(ways[name][kind])
                    cut = min(length, LONGEST.get(number, 1.0))
                    axes.barh(row + offset, cut, 0.34, color=colour, label=kind if not row else None)
                    text = f"{length:.2f}" if number < 2 else f"{length:.0f}"
                    axes.text(cut, row + offset, f" {text}", va="center", fontsize=8, color=INK)
            if limit is not None:
                axes.axvline(limit, color=LIMIT, linewidth=1)
            axes.set_yticks(range(len(names)), names if not number else [""] * len(names))
            axes.set_xlim(0, 1.15 * LONGEST.get(number, 1.0))
            axes.set_title(title, fontsize=9.5, color=FAINT, loc="left")
            axes.tick_params(length=0, colors=FAINT)
            axes.tick_params(axis="y", colors=INK)
        figure.legend(*axes.get_legend_handles_labels(), loc="lower right", ncols=2, frameon=False)
        figure.tight_layout(rect=(0, 0.05, 1, 1))
        figure.savefig(path)


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    plot(json.loads(source.read_text())["ways"], target)


if __name__ == "__main__":
    main()
