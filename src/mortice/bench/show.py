"""Results as a person reads them, and how a run is getting on."""

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from mortice.bench.http import now
from mortice.bench.run import Watch
from mortice.bench.timeline import Timeline

_METRICS = (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"), ("ITL", "itl_ms"), ("E2E", "e2e_ms"))


class ProgressBar(Watch):
    """A bar on stderr, drawn four times a second at most: drawing is CPU that the run would be charged
    for."""

    def __init__(self) -> None:
        self._failed = 0
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._drawn_s = 0.0

    def begin(self, label: str, total: int) -> None:
        self._failed = 0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]}", style="red"),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
        )
        self._task = self._progress.add_task(label, total=total, failed="")
        self._progress.start()
        self._drawn_s = now()

    def ended(self, timeline: Timeline) -> None:
        self._failed += not timeline.ok
        if self._progress is None:
            return
        self._progress.update(self._task, advance=1, failed=f"{self._failed} failed" if self._failed else "")
        if now() - self._drawn_s >= 0.5:
            self._drawn_s = now()
            self._progress.refresh()

    def finish(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def show_result(result: dict[str, Any], console: Console) -> None:
    """One run: the latency table, rates, SLO, cost, notes."""
    console.print(_headline(result))
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("ms")
    for name in ("mean", "p50", "p90", "p99", "95 % of p90"):
        table.add_column(name, justify="right")
    for label, key in _METRICS:
        figures = result[key]
        span = figures.get("ci95", {}).get("p90")
        cells = [number(figures[name]) for name in ("mean", "p50", "p90", "p99")]
        table.add_row(label, *cells, f"{number(span[0])} to {number(span[1])}" if span else "")
    console.print(table)
    console.print(
        f"output {number(result['output_tokens_per_s'])} tok/s   "
        f"{number(result['requests_per_s'])} req/s   {number(result['duration_s'])} s   "
        f"peak concurrency {result['peak_concurrency']}"
    )
    if result["num_failed"]:
        reasons = ", ".join(f"{count} {kind}" for kind, count in result["failures"].items())
        console.print(
            Text(f"failed {result['num_failed']} of {result['num_issued']}: {reasons}", style="red")
        )
    if result["slo"]:
        console.print(_slo_line(result["slo"], result["num_issued"]))
    console.print(_cpu_line(result), style="dim")
    _notes(result, console)


def show_goodput(result: dict[str, Any], console: Console) -> None:
    """The answer of a goodput search and the rates behind it."""
    found = result["goodput"]
    console.print(_headline(result))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("req/s", "attainment", "95 %", "verdict"):
        table.add_column(name, justify="left" if name == "verdict" else "right")
    for probe in found["probes"]:
        low, high = probe["ci95"]
        verdict = ("passes" if probe["passed"] else "fails") + ("" if probe["decided"] else ", not sure")
        share = f"{probe['attainment']:.1%}"
        table.add_row(number(probe["rate"]), share, f"{low:.1%} to {high:.1%}", verdict)
    console.print(table)
    bound = (
        ""
        if found["first_failed_rate"] is None
        else f", first failure at {number(found['first_failed_rate'])}"
    )
    console.print(
        Text(f"goodput {number(found['goodput_per_gpu'])} req/s/GPU", style="bold")
        + Text(
            f"  ({number(found['sustained_rate'])} req/s on {found['num_gpus']} GPU"
            f"{'s' if found['num_gpus'] > 1 else ''} at {found['target']:.0%} attainment{bound})",
            style="not bold",
        )
    )
    _notes(result, console)


def show_comparison(comparison: dict[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "A", "B", "B / A", "better"):
        table.add_column(name, justify="right" if name in ("A", "B", "B / A") else "left")
    words = {"tied": "tied", "a": "A", "b": "B", None: "single run, no interval"}
    for row in comparison["rows"]:
        style = {"tied": "dim", None: "dim"}.get(row["better"], "")
        cells = (number(row["a"]), number(row["b"]), number(row["b_over_a"]))
        table.add_row(row["name"], *cells, words[row["better"]], style=style)
    console.print(table)
    _notes(comparison, console)


def number(value: float | None) -> str:
    """Three significant digits, no exponent; a dash for what was not measured."""
    if value is None:
        return "-"
    if abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def describe_load(workload: dict[str, Any]) -> str:
    """The load in a few words: how many requests of which shape, sent how."""
    count = f"{workload['num_prompts']} requests"
    if "trace" in workload:
        rate = f" at {number(workload['rate'])} req/s" if workload.get("rate") else ""
        return f"{count} of {workload['trace']}{rate}"
    shape = f"{count}, {workload['input_len']} in, {workload['output_len']} out"
    if "concurrency" in workload:
        return f"{shape}, {workload['concurrency']} at once"
    rate = f" at {number(workload['rate'])} req/s" if workload.get("rate") else ""
    cv = f" (CV {workload['cv']:g})" if workload["arrival"] == "gamma" else ""
    return f"{shape}, {workload['arrival']}{cv}{rate}"


def _headline(result: dict[str, Any]) -> Text:
    return Text(str(result["model"]), style="bold") + Text(
        f"  {describe_load(result['workload'])}", style="not bold"
    )


def _slo_line(slo: dict[str, Any], issued: int) -> Text:
    low, high = slo["ci95"]
    verdict = "reached" if slo["reached"] else "missed"
    unsure = "" if slo["decided"] else ", too few requests to be sure"
    limits = ", ".join(
        f"{name.removesuffix('_ms').upper()} {limit:g} ms" for name, limit in slo["limits"].items()
    )
    return Text(
        f"SLO {limits}: {slo['num_met']} of {issued} met it, {slo['attainment']:.1%} "
        f"({low:.1%} to {high:.1%}), target {slo['target']:.0%} {verdict}{unsure}",
        style="green" if slo["reached"] else "red",
    )


def _cpu_line(result: dict[str, Any]) -> str:
    client, server = result["client"], result["server"]
    share = f"{client['share_of_core']:.1%}"
    line = f"client CPU {client['cpu_s']:.2f} s, {share} of a core ({client['event_loop']})"
    if server:
        line += f"; server CPU {server['cpu_s']:.2f} s, {server['cores']:.2f} cores"
    return line


def _notes(document: dict[str, Any], console: Console) -> None:
    for note in document["notes"]:
        console.print(Text(f"note: {note}", style="yellow"))
