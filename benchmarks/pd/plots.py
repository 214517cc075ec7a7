"""Pictures of the policy runs: ours over the others trace by trace, and one run as roles and attainment over time.

.venv/bin/python benchmarks/pd/plots.py [--results build/pd-policies-8.json] [--into docs/images]
"""

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from policies import CASES, TIMES, plan
from traffic import attainment

from mortice.sim.report import met

OTHERS = {
    "first tenth": ("static, first tenth's choice", "#c2502e", "v"),
    "hindsight": ("static, best in hindsight", "#1f6f8b", "o"),
    "hindsight convertible": ("static with convertible decode, best in hindsight", "#1f6f8b", "s"),
    "together": ("undivided, chunked prefill", "#7a8b1f", "D"),
    "dopd": ("DOPD's formula", "#8b1f6f", "^"),
    "dopd convertible": ("DOPD with convertible decode", "#8b1f6f", "s"),
}
COLOURS = {"prefill": "#c2502e", "decode": "#1f6f8b", "mixed": "#7a8b1f"}
STEP_S = 10.0


def ratios(results: dict, path: Path) -> None:
    names = [name for name in CASES if any(r["trace"] == name for r in results.values())]
    figure, axes = plt.subplots(figsize=(9, 0.55 * len(names) + 1.6))
    for i, (key, (label, colour, marker)) in enumerate(OTHERS.items()):
        for j, name in enumerate(names):
            found = [
                r["ours over"][key] for r in results.values() if r["trace"] == name and r["ours over"][key]
            ]
            y = len(names) - j + 0.3 - 0.12 * i
            axes.plot([min(found), max(found)], [y, y], color=colour, lw=1.5)
            face = "white" if "convertible" in key else colour
            axes.plot(
                np.mean(found),
                y,
                marker,
                color=colour,
                mfc=face,
                ms=6,
                ls="",
                label=label if j == 0 else None,
            )
    axes.axvline(1.0, color="#20242a", lw=1)
    axes.axvline(1.5, color="#8a919c", lw=1, ls=":")
    axes.set_yticks(range(len(names), 0, -1), names)
    axes.set_xlabel(
        "goodput of ours over the other's; mean and range over seeds (right of 1: ours is better)"
    )
    axes.grid(axis="x", color="#eceff3")
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=120, bbox_inches="tight")


def timeline(name: str, rate: float, instances: int, early: int, path: Path) -> None:
    """Roles of ours over time, and the share of requests that arrived in each 10 s and met the SLO."""
    make, slo, block, _ = CASES[name]
    half = instances // 2
    trace = make(rate, 1)
    figure, (top, below) = plt.subplots(2, 1, figsize=(9, 5), sharex=True)
    ways = {
        "ours": plan(slo, block, half, instances - half, policy="mortice", convertible=True),
        f"static {early}P{instances - early}D, first tenth's choice": plan(
            slo, block, early, instances - early
        ),
        f"static {half}P{half}D with convertible decode": plan(slo, block, half, half, convertible=True),
    }
    for (label, made), colour in zip(ways.items(), ("#20242a", "#c2502e", "#1f6f8b"), strict=True):
        share, cluster = attainment(made, trace, rate, slo, give_up=False)
        at = np.array([r.arrival_s for r in cluster.requests])
        good = np.array([all(met(r, slo)) for r in cluster.requests], dtype=float)
        window = (at // STEP_S).astype(int)
        number = np.maximum(1, np.bincount(window))
        below.step(
            np.arange(len(number)) * STEP_S, np.bincount(window, good) / number, where="post", color=colour,
            lw=1.3, label=f"{label}: {share:.0%} of all",
        )  # fmt: skip
        if label == "ours":
            seen = [d.seen for d in cluster.decisions]
            top.stackplot(
                [s.at_s for s in seen], [[getattr(s, role) for s in seen] for role in COLOURS], step="post",
                labels=list(COLOURS), colors=list(COLOURS.values()), alpha=0.8,
            )  # fmt: skip
    kinds = trace.name.split()
    for i, kind in enumerate(kinds):
        start = i * trace.requests[-1].at_s / len(kinds)
        top.text(start + 3, instances * 1.07, kind, fontsize=9)
        for each in (top, below):
            each.axvline(start, color="#8a919c", lw=0.8, ls=":")
    top.set_ylabel("instances by role")
    top.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    below.set_ylabel("within the SLO")
    below.axhline(slo.target, color="#8a919c", lw=0.8)
    below.set_xlabel(f"seconds; {rate:g} requests a second on {instances * TIMES.gpus} H100")
    below.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("build/pd-policies-8.json"))
    parser.add_argument("--into", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    ratios(json.loads(options.results.read_text()), options.into / "pd-policies.png")
    timeline("answers-conv-code", 18.0, 4, 1, options.into / "pd-timeline.png")


if __name__ == "__main__":
    main()
