"""What long prompts do to running streams: prefill apart from decode, against both in one worker.

    python benchmarks/pd_interference.py [--duration 90] [--rounds 1] [--long-rate 0.1]

Two layouts with the same two compute threads: P/D (one prefill and one decode worker, a thread each) and
colocated (one worker, two threads). Each is started alone; layouts alternate from round to round. First the
steady streams run by themselves (`--quiet` seconds): short prompts, long answers, a closed loop. Then, for
`--duration` seconds, long prompts with short answers arrive beside them in an open loop (Poisson; the same
instants and lengths in both layouts). Figures are of the streams' tokens that came while long prompts kept
arriving, and of each class's TTFT.
"""

import argparse
import asyncio
import os
import platform
import random
import statistics
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from contenders import mortice
from interference_plot import plot_interference
from served import MachineUse, Served, StartFailed, cpu_name

from mortice import __version__
from mortice.bench.arrivals import Arrival
from mortice.bench.endpoint import Endpoint
from mortice.bench.load import Job, LoadRun, RealClock, closed_loop, open_loop
from mortice.bench.loop import run as run_loop
from mortice.bench.negotiate import Terms, negotiate
from mortice.bench.prompts import PromptMaker
from mortice.bench.stats import percentile
from mortice.bench.timeline import Timeline
from mortice.specs.errors import MorticeError

Row = dict[str, Any]
LAYOUTS = {
    "pd": mortice("P/D: 1 prefill + 1 decode, a thread each", prefill=1, threads=1, quantize="none"),
    "colocated": mortice("colocated: 1 worker, 2 threads", prefill=0, threads=2, quantize="none"),
}
STREAM = (32, 200)  # tokens in and out
NUM_STREAMS = 4
LONG_IN, LONG_OUT = (1500, 3000), 8
MORE_THAN_FIT = 10_000  # streams that a closed loop can take from; time ends it


def main() -> int:
    options = parse()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    names = list(LAYOUTS)
    for round_number in range(options.rounds):
        for name in names if round_number % 2 == 0 else names[::-1]:
            say(f"round {round_number + 1} of {options.rounds}: {name}")
            try:
                rows.append(measure(name, round_number, options))
            except (StartFailed, MorticeError) as error:
                say(f"{name}: {error}")
                return 1
    document = {
        "kind": "pd_interference",
        "mortice": __version__,
        "torch": version("torch"),
        "python": platform.python_version(),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0))},
        "workload": {
            "streams": {"concurrency": NUM_STREAMS, "input_len": STREAM[0], "output_len": STREAM[1]},
            "long": {"rate": options.long_rate, "input_len": LONG_IN, "output_len": LONG_OUT},
            "quiet_s": options.quiet,
            "duration_s": options.duration,
            "seed": options.seed,
        },
        "rows": rows,
    }
    options.output.write_bytes(msgspec.json.encode(document))
    print(markdown(document))
    plot_interference(document, {name: layout.label for name, layout in LAYOUTS.items()}, options.plot)
    return 1 if any(row["failures"] for row in rows) else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--duration", type=float, default=90, help="seconds in which long prompts arrive")
    parser.add_argument("--quiet", type=float, default=20, help="seconds of streams alone, before")
    parser.add_argument("--long-rate", type=float, default=0.1, help="long prompts a second")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("build/pd_interference.json"))
    parser.add_argument("--plot", type=Path, default=Path("build/pd_interference.png"), help=".png or .svg")
    options = parser.parse_args()
    if min(options.duration, options.quiet, options.long_rate) <= 0 or options.rounds < 1:
        parser.error("--duration, --quiet and --long-rate are above 0, --rounds at least 1")
    return options


def measure(name: str, round_number: int, options: argparse.Namespace) -> Row:
    layout = LAYOUTS[name]
    load_before = os.getloadavg()[0]
    log = options.output.with_suffix(f".{name}.log")
    with Served(layout.command, model=layout.model, log=log, environment=dict(layout.environment)) as served:
        row = run_loop(mixed(served, round_number, options))
    said = {"layout": name, "round": round_number, "load_before_start": load_before}
    return (
        said
        | {"started_at": datetime.now(UTC).isoformat(timespec="seconds"), "start_s": served.start_s}
        | row
    )


async def mixed(served: Served, round_number: int, options: argparse.Namespace) -> Row:
    """Warm up, streams alone, then streams beside long prompts."""
    endpoint = Endpoint(f"{served.url}/v1", "smollm2")
    terms = await negotiate(endpoint, ignore_eos=True, temperature=0.0, source="auto")
    maker = PromptMaker(terms.calibration, options.seed * 1000 + round_number)
    lengths = random.Random(f"long {options.seed} {round_number}")
    arrival = Arrival(rate=options.long_rate)
    most = max(1, round(options.duration * options.long_rate * 3))
    instants = [1.0 + at for at in arrival.times(most, options.seed * 1000 + round_number)]
    instants = [at for at in instants if at < options.duration]
    shapes = [(lengths.randint(*LONG_IN), at) for at in instants]

    def job(index: int, label: str, num_in: int, num_out: int, at_s: float = 0.0) -> Job:
        return make_job(terms, endpoint, maker, index, label, num_in, num_out, at_s)

    async def send(job: Job, timeline: Timeline) -> None:
        await endpoint.stream(job.body, timeline)

    async def stream_for(label: str, seconds: float) -> LoadRun:
        jobs = (job(i, f"{label} {i}", *STREAM) for i in range(MORE_THAN_FIT))
        return await closed_loop(
            jobs, send, concurrency=NUM_STREAMS, clock=RealClock(), stop_after_s=seconds, on_end=ignore
        )

    warm = [job(0, "warm short", *STREAM), job(1, "warm long", LONG_IN[1], LONG_OUT)]
    await closed_loop(warm, send, concurrency=2, clock=RealClock(), stop_after_s=None, on_end=ignore)
    quiet = await stream_for("quiet", options.quiet)
    long_jobs = [job(i, f"long {i}", num_in, LONG_OUT, at) for i, (num_in, at) in enumerate(shapes)]
    with MachineUse(served) as use:
        long_load = open_loop(long_jobs, send, clock=RealClock(), stop_after_s=None, on_end=ignore)
        busy, long_run = await asyncio.gather(stream_for("busy", options.duration), long_load)
    endpoint.close()
    window = (long_run.started_s + instants[0], long_run.started_s + options.duration)
    everything = [*quiet.timelines, *busy.timelines, *long_run.timelines]
    return {
        "quiet": stream_figures(quiet.timelines, (quiet.started_s, quiet.started_s + options.quiet)),
        "streams": stream_figures(busy.timelines, window),
        "long": latency_figures(long_run.timelines) | {"tokens_in": [num_in for num_in, _ in shapes]},
        "use": use.figures(),
        "failures": [f"{t.failure}: {t.detail}" for t in everything if not t.ok],
    }


def make_job(
    terms: Terms,
    endpoint: Endpoint,
    maker: PromptMaker,
    index: int,
    label: str,
    num_in: int,
    num_out: int,
    at_s: float,
) -> Job:
    body = terms.body(endpoint, maker.make(label, num_in), num_out)
    return Job(index, body, num_in, num_out, at_s)


def ignore(timeline: Timeline) -> None:
    """Nobody watches the end of single requests here."""


def latency_figures(timelines: list[Timeline]) -> Row:
    ttft = [t.ttft_s * 1e3 for t in timelines if t.ok]
    return {"num": len(timelines), "ttft_ms": ttft, "ttft": spread(ttft)}


def stream_figures(timelines: list[Timeline], window: tuple[float, float]) -> Row:
    """TTFT and TPOT of requests sent in the window, gaps of tokens that came in it."""
    sent = [t for t in timelines if window[0] <= t.sent_s <= window[1]]
    gaps = [gap for t in timelines if t.ok for gap in gaps_within(t, window)]
    tpot = [t.tpot_s * 1e3 for t in sent if t.ok and t.tpot_s is not None]
    seconds = window[1] - window[0]
    return latency_figures(sent) | {
        "tpot": spread(tpot),
        "itl_ms": gaps,
        "itl": spread(gaps),
        "output_tokens_per_s": len(gaps) / seconds,
    }


def gaps_within(timeline: Timeline, window: tuple[float, float]) -> list[float]:
    """Milliseconds before each token that came in the window."""
    gaps = timeline.itl_s()
    arrived = timeline.chunk_s[0]
    kept = []
    for gap in gaps:
        arrived += gap
        if window[0] <= arrived <= window[1]:
            kept.append(gap * 1e3)
    return kept


def spread(values: list[float]) -> Row:
    if not values:
        return {"p50": None, "p99": None, "max": None}
    return {"p50": percentile(values, 50), "p99": percentile(values, 99), "max": max(values)}


def markdown(document: Row) -> str:
    long, streams = document["workload"]["long"], document["workload"]["streams"]
    loads = [row["load_before_start"] for row in document["rows"]]
    lines = [
        f"{streams['concurrency']} streams ({streams['input_len']} in, {streams['output_len']} out) beside long "
        f"prompts ({long['input_len'][0]} to {long['input_len'][1]} in, {long['output_len']} out, "
        f"{long['rate']:g} a second) for {document['workload']['duration_s']:g} s; {document['machine']['cpu']}, "
        f"{document['machine']['cores']} cores; mortice {document['mortice']}, torch {document['torch']}; "
        f"{document['rows'][0]['started_at'][:10]}; load average before each start {min(loads):.1f} to "
        f"{max(loads):.1f}. Milliseconds; medians over {1 + max(row['round'] for row in document['rows'])} rounds.",
        "",
        "| layout | streams | ITL p50 | ITL p99 | TPOT p50 | TPOT p99 | TTFT p50 | TTFT p99 | tok/s | others' cores |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, layout in LAYOUTS.items():
        rows = [row for row in document["rows"] if row["layout"] == name]
        for part, words in (("quiet", "alone"), ("streams", "beside long prompts")):
            cells = [layout.label, words]
            for figure in ("itl", "tpot", "ttft"):
                cells += [middle([row[part][figure][q] for row in rows]) for q in ("p50", "p99")]
            cells.append(middle([row[part]["output_tokens_per_s"] for row in rows]))
            cells.append("" if part == "quiet" else middle([row["use"]["others_cores"] for row in rows], 2))
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| layout | long prompts | TTFT p50 | TTFT p99 |", "| --- | ---: | ---: | ---: |"]
    for name, layout in LAYOUTS.items():
        rows = [row for row in document["rows"] if row["layout"] == name]
        number = str(sum(row["long"]["num"] for row in rows))
        cells = [middle([row["long"]["ttft"][q] for row in rows]) for q in ("p50", "p99")]
        lines.append(f"| {' | '.join([layout.label, number, *cells])} |")
    lines += ["", *(f"failed: {text}" for row in document["rows"] for text in row["failures"])]
    return "\n".join(lines).rstrip()


def middle(values: list[float | None], digits: int = 1) -> str:
    present = [value for value in values if value is not None]
    return f"{statistics.median(present):,.{digits}f}" if present else "-"


def say(line: str) -> None:
    print(f"pd_interference: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
