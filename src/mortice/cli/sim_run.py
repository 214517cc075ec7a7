"""`mortice sim run | replay`: a deployment document under a trace, and a decision log run again."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from mortice.cli.plan_output import JsonOption
from mortice.sched.journal import Journal
from mortice.sched.journal import replay as run_again
from mortice.sim.cluster import Cluster
from mortice.sim.deployed import longest, plan_of
from mortice.sim.faults import random_faults
from mortice.sim.report import report
from mortice.sim.summary import finite
from mortice.sim.traffic import ClipRule, prepared, requests_of
from mortice.specs.deployment import load_deployment
from mortice.specs.errors import MorticeError, RequestError
from mortice.specs.workload import read_trace


class Policy(StrEnum):
    static = "static"
    reactive = "reactive"
    dopd = "dopd"
    dopd_released = "dopd-released"
    mortice = "mortice"


class Clipping(StrEnum):
    refuse = "refuse"
    truncate = "truncate"
    drop = "drop"


TURNS = 50  # of the progress bar


def run(
    deployment: Annotated[Path, typer.Option(help="Deployment document with a cluster section.")],
    trace: Annotated[Path, typer.Option(help="Trace file, plain or gzipped.")],
    policy: Annotated[Policy | None, typer.Option(help="Who decides. Default: the document's.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Mean requests a second; default: the trace's own.")
    ] = None,
    duration: Annotated[float | None, typer.Option(help="Seconds of the trace's own time to take.")] = None,
    clip: Annotated[Clipping, typer.Option(help="Requests longer than a worker holds.")] = Clipping.refuse,
    jitter: Annotated[
        float, typer.Option(help="Seconds of the trace's clock tick to spread arrivals over.")
    ] = 0.0,
    faults: Annotated[int, typer.Option(help="Random faults over the run.")] = 0,
    exact: Annotated[
        bool, typer.Option("--exact", help="The engine's own scheduler, token by token: slower.")
    ] = False,
    log: Annotated[Path | None, typer.Option(help="Write every decision here, for `sim replay`.")] = None,
    seed: Annotated[int, typer.Option(help="Of jitter, faults and the spread of steps.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Run a trace through a deployment under virtual time."""
    if faults < 0:
        raise RequestError(f"faults must be 0 or more, not {faults}", param="faults")
    document = load_deployment(deployment)
    plan = plan_of(document, policy.value if policy else None)
    physics = msgspec.structs.replace(plan.physics, seed=seed)
    plan = msgspec.structs.replace(plan, physics=physics, fidelity="exact" if exact else "macro")
    rule: ClipRule = clip.value
    rows = prepared(
        read_trace(trace, strict=True),
        rate=rate, duration_s=duration, jitter_s=jitter, seed=seed, clip=rule, most=longest(plan, document),
    )  # fmt: skip
    requests = requests_of(rows, plan.setup.block_size, max_total=longest(plan, document))
    end_s = requests[-1].arrival_s
    journal = Journal(log, plan.setup) if log else None
    try:
        cluster = Cluster(
            plan,
            requests,
            faults=random_faults(seed, end_s, faults),
            journal=journal.write if journal else None,
        )
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            task = bar.add_task("simulating", total=TURNS)
            for turn in range(1, TURNS + 1):
                cluster.run(until_s=end_s * turn / TURNS)
                bar.update(task, completed=turn)
            cluster.run()
    finally:
        if journal is not None:
            journal.close()
    answer = {
        "policy": plan.setup.policy,
        "seed": seed,
        "trace": rows.name,
        "rate": rows.mean_rate,
        "clipped": rows.num_clipped,
        "gpus_at_start": plan.prefill * plan.prefill_body.times.gpus
        + (plan.decode + plan.mixed) * plan.decode_body.times.gpus,
        **report(cluster, plan.setup.slo),
    }
    if as_json:
        sys.stdout.write(msgspec.json.encode(finite(answer)).decode() + "\n")
    else:
        _show(answer)


def replay(
    log: Annotated[Path, typer.Argument(help="A decision log, of the live cluster or of `sim run --log`.")],
    as_json: JsonOption = False,
) -> None:
    """Feed a log's events to a fresh control plane: the answers must be the same. Exit code 1 if one differs."""
    result = run_again(log)
    if as_json:
        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    else:
        print(f"{result.num_events} events, {result.num_answers} answers, {result.num_differences} differ")
        for difference in result.differences[:10]:
            print(f"line {difference.line}: recorded {difference.recorded}, now {difference.replayed}")
    if result.num_differences:
        raise MorticeError(f"{result.num_differences} of {result.num_answers} decisions came out differently")


def _show(answer: dict) -> None:
    table = Table("", "p50", "p90", "p99", "within SLO", title=f"{answer['trace']}, {answer['policy']}")
    for name, share in (("ttft_ms", "attainment_ttft"), ("tpot_ms", "attainment_tpot"), ("e2e_ms", "")):
        figures = [answer[name][p] for p in ("p50", "p90", "p99")]
        shown = [f"{value:.1f}" if value is not None else "–" for value in figures]
        table.add_row(name, *shown, f"{answer[share]:.1%}" if share else "")
    low, high = answer["attainment_ci95"]
    table.add_row("both", "", "", "", f"{answer['attainment']:.1%} ({low:.1%} to {high:.1%})")
    console = Console()
    console.print(table)
    actions = ", ".join(f"{count} {name}" for name, count in answer["actions"].items() if count) or "none"
    console.print(
        f"{answer['finished']} of {answer['requests']} finished, {answer['rejected']} rejected; "
        f"{answer['gpu_hours']:.2f} GPU-hours, at most {answer['max_gpus']} GPUs; actions: {actions}"
    )
