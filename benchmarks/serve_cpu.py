"""Compares servers of one small model on one CPU host, interleaved in one run.

    python benchmarks/serve_cpu.py [--servers all] [--rounds 3] [--num-prompts 24] [--output FILE] [--plot FILE]

In each round each server is started alone, warmed up, loaded in a closed loop at every concurrency (128 tokens in,
64 out, greedy, `ignore_eos`, distinct prompts, streamed /v1/completions) and ended; the order rotates from round
to round, so that no server always follows the same neighbour. The result file is written after each server: the
same command carries on where it was stopped. Servers that are not set up are left out, with the reason.

    benchmarks/setup_peers.sh        sets the peers up
"""

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
from comparison_plot import plot_comparison
from contenders import Contender, chosen, contenders
from served import MachineUse, MemoryWatch, Served, StartFailed, cpu_name

from mortice import __version__
from mortice.bench.loop import run as run_loop
from mortice.bench.options import BenchOptions
from mortice.bench.run import Bench
from mortice.specs.errors import MorticeError

Row = dict[str, Any]  # one server in one round, as the result file has it


def main() -> int:
    options = parse()
    settings = {
        "num_prompts": options.num_prompts,
        "input_len": options.input_len,
        "output_len": options.output_len,
        "concurrency": options.concurrency,
    }
    document = resume(options.output, settings)
    table = contenders()
    names = [name for name in options.servers if name in table]
    usable = []
    for name in names:
        if reason := table[name].missing():
            document["skipped"][name] = reason
            say(f"{name} is left out: {reason}")
        else:
            document["skipped"].pop(name, None)
            usable.append(name)
    if not usable:
        say("nothing to measure")
        return 1

    for round_number in range(options.rounds):
        shift = round_number % len(usable)
        for name in usable[shift:] + usable[:shift]:
            if any(row["server"] == name and row["round"] == round_number for row in document["rows"]):
                continue
            if name in document["skipped"]:  # it failed to start in this run
                continue
            say(f"round {round_number + 1} of {options.rounds}: {name}")
            try:
                row = measure(name, table[name], round_number, settings, options.output)
            except (StartFailed, MorticeError) as error:
                document["skipped"][name] = str(error)
                say(f"{name} is left out: {error}")
            else:
                document["rows"].append(row)
            write(options.output, document)
    if not document["rows"]:
        say("no server could be measured")
        return 1
    summary = summarise(document, names, options.peer)
    document["summary"], document["peer"] = summary, options.peer
    write(options.output, document)
    print(markdown(document))
    if options.plot:
        plot_comparison(document, options.plot)
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--servers", type=chosen, default="all", help=f"all, or some of {', '.join(contenders())}"
    )
    parser.add_argument("--peer", default="vllm", help="the server that ratios are to (default: vllm)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--num-prompts", type=int, default=24, help="requests a server, round and concurrency"
    )
    parser.add_argument("--input-len", type=int, default=128, help="tokens")
    parser.add_argument("--output-len", type=int, default=64, help="tokens")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument(
        "--output", type=Path, default=Path("build/serve_cpu.json"), help="result file, carried on"
    )
    parser.add_argument("--plot", type=Path, default=Path("build/serve_cpu.png"), help=".png or .svg")
    options = parser.parse_args()
    if options.peer not in contenders():
        parser.error(f"--peer: no server is called {options.peer!r}")
    if min(options.rounds, options.num_prompts, options.input_len, *options.concurrency) < 1:
        parser.error("counts and lengths are at least 1")
    if options.output_len < 2:
        parser.error("--output-len is at least 2: TPOT needs two tokens")
    return options


def resume(path: Path, settings: Row) -> Row:
    """The document in `path`, if it has the same settings; else a new one. Another run's file is not overwritten."""
    if path.exists():
        document: Row = msgspec.json.decode(path.read_bytes())
        if document.get("settings") == settings and document.get("mortice") == __version__:
            say(f"carrying on {path}: {len(document['rows'])} rows are there")
            return document
        sys.exit(f"serve_cpu: {path} has other settings; name another --output or delete it")
    path.parent.mkdir(parents=True, exist_ok=True)
    return {
        "kind": "serve_cpu",
        "mortice": __version__,
        "torch": version("torch"),
        "python": platform.python_version(),
        "machine": {"cpu": cpu_name(), "cores": len(os.sched_getaffinity(0))},
        "settings": settings,
        "skipped": {},
        "rows": [],
    }


def measure(name: str, contender: Contender, round_number: int, settings: Row, output: Path) -> Row:
    """Start, warm up, load at each concurrency, end. Raises StartFailed or what the bench raises."""
    row: Row = {
        "server": name,
        "label": contender.label,
        "ours": contender.ours,
        "round": round_number,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "load_before_start": os.getloadavg()[0],
        "command": contender.command,
        "loads": {},
    }
    served = Served(
        contender.command,
        model=contender.model,
        log=output.with_suffix(f".{name}.log"),
        environment=dict(contender.environment),
    )
    with served, MemoryWatch(served) as memory:
        row["start_s"] = served.start_s
        for number, concurrency in enumerate(settings["concurrency"]):
            row["loads"][str(concurrency)] = load(served, contender, concurrency, number, settings)
    row |= {"rss_mib": memory.rss_mib, "pss_mib": memory.pss_mib, "num_processes": memory.num_processes}
    return row


def load(served: Served, contender: Contender, concurrency: int, number: int, settings: Row) -> Row:
    """One closed loop. A seed of its own, so that no prompt is in the server's prefix cache already."""
    bench = Bench(
        BenchOptions(
            base_url=f"{served.url}/v1",
            model=contender.model,
            num_prompts=settings["num_prompts"],
            input_len=settings["input_len"],
            output_len=settings["output_len"],
            concurrency=concurrency,
            warmup=max(2, concurrency),
            seed=1 + number,
        )
    )

    async def go() -> Row:
        await bench.prepare()
        load_before = os.getloadavg()[0]
        with MachineUse(served) as use:
            result, _ = await bench.run()
        bench.close()
        return {
            "load_before": load_before,
            "output_tokens_per_s": result["output_tokens_per_s"],
            "ttft_ms": {key: result["ttft_ms"][key] for key in ("p50", "p99")},
            "tpot_ms": {key: result["tpot_ms"][key] for key in ("p50", "p99")},
            "input_tokens": result["input_tokens"]["mean"],
            "num_completed": result["num_completed"],
            "num_failed": result["num_failed"],
            "failures": result["failures"],
            "num_cut_short": result["num_cut_short"],
            "num_without_usage": result["num_without_usage"],
            "refused_fields": result["request"]["refused_fields"],
            "client_share_of_core": result["client"]["share_of_core"],
            **use.figures(),
            "void": result["void"],
            "notes": result["notes"],
        }

    return run_loop(go())


FIGURES: dict[str, Callable[[Row], Any]] = {  # how a load's figures are found in a row
    "output_tokens_per_s": lambda load: load["output_tokens_per_s"],
    "ttft_p50_ms": lambda load: load["ttft_ms"]["p50"],
    "ttft_p99_ms": lambda load: load["ttft_ms"]["p99"],
    "tpot_p50_ms": lambda load: load["tpot_ms"]["p50"],
    "tpot_p99_ms": lambda load: load["tpot_ms"]["p99"],
    "client_share_of_core": lambda load: load["client_share_of_core"],
    "server_cores": lambda load: load["server_cores"],
    "others_cores": lambda load: load["others_cores"],
    "load_before": lambda load: load["load_before"],
}


def summarise(document: Row, names: list[str], peer: str) -> Row:
    """Medians over rounds; the ratio to the peer is the median of the ratios of each round, both of one round."""
    by_round = {(row["server"], row["round"]): row for row in document["rows"]}
    summary: Row = {}
    for name in names:
        rows = [row for row in document["rows"] if row["server"] == name]
        if not rows:
            continue
        said: Row = {key: rows[0][key] for key in ("label", "ours")} | {"rounds": len(rows), "loads": {}}
        said |= {key: median([row[key] for row in rows]) for key in ("start_s", "rss_mib", "pss_mib")}
        said |= {"num_processes": max(row["num_processes"] for row in rows)}
        for concurrency in map(str, document["settings"]["concurrency"]):
            loads = [row["loads"][concurrency] for row in rows]
            figures = {figure: median([find(load) for load in loads]) for figure, find in FIGURES.items()}
            ratios = []
            for row in rows:
                other = by_round.get((peer, row["round"]))
                if other and (base := other["loads"][concurrency]["output_tokens_per_s"]):
                    ratios.append(row["loads"][concurrency]["output_tokens_per_s"] / base)
            figures["ratio_to_peer"] = median(ratios)
            figures["num_failed"] = sum(load["num_failed"] for load in loads)
            figures["void"] = any(load["void"] for load in loads)
            said["loads"][concurrency] = figures
        summary[name] = said
    return summary


def median(values: list[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None


def markdown(document: Row) -> str:
    settings, summary = document["settings"], document["summary"]
    loads = [row["load_before_start"] for row in document["rows"]]
    machine = document["machine"]
    lines = [
        f"{settings['input_len']} tokens in, {settings['output_len']} out, greedy, streamed, {settings['num_prompts']} "
        f"distinct prompts a cell; {machine['cpu']}, {machine['cores']} cores; mortice {document['mortice']}, torch "
        f"{document['torch']}; {document['rows'][0]['started_at'][:10]}; load average before each start "
        f"{min(loads):.1f} to {max(loads):.1f}. Medians over rounds; ratio: output rate over {document['peer']}'s "
        "in the same round.",
    ]
    for concurrency in map(str, settings["concurrency"]):
        lines += [
            "",
            f"Concurrency {concurrency}",
            "",
            "| server | tok/s | ratio | TTFT p50 | p99 | TPOT p50 | p99 (ms) | server cores | others | client | load |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for said in summary.values():
            f = said["loads"][concurrency]
            flags = (" (void)" if f["void"] else "") + (
                f" ({f['num_failed']} failed)" if f["num_failed"] else ""
            )
            cells = [said["label"] + flags, show(f["output_tokens_per_s"]), show(f["ratio_to_peer"], 2)]
            cells += [show(f[key]) for key in ("ttft_p50_ms", "ttft_p99_ms", "tpot_p50_ms", "tpot_p99_ms")]
            cells += [
                show(f["server_cores"], 2),
                show(f["others_cores"], 2),
                f"{f['client_share_of_core']:.1%}",
                show(f["load_before"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Resources", "", "| server | to first answer | RSS peak | PSS peak | processes | rounds |"]
    lines.append("| --- | ---: | ---: | ---: | ---: | ---: |")
    for said in summary.values():
        cells = [
            said["label"],
            f"{said['start_s']:.1f} s",
            f"{said['rss_mib']:.0f} MiB",
            f"{said['pss_mib']:.0f} MiB",
        ]
        lines.append(f"| {' | '.join([*cells, str(said['num_processes']), str(said['rounds'])])} |")
    lines += [f"\nLeft out: {name}: {reason}" for name, reason in document["skipped"].items()]
    notes = sorted(
        {
            (row["server"], note)
            for row in document["rows"]
            for x in row["loads"].values()
            for note in x["notes"]
        }
    )
    lines += ["", *(f"{server}: {note}" for server, note in notes)] if notes else []
    return "\n".join(lines)


def show(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def write(path: Path, document: Row) -> None:
    """Whole or not at all: a stopped run must find a readable file."""
    fresh = path.with_suffix(".tmp")
    fresh.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1))
    fresh.replace(path)


def say(line: str) -> None:
    print(f"serve_cpu: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
