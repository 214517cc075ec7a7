"""`mortice sim distserve`: DistServe's published simulator, for comparison with its published figures."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from mortice.cli.plan_output import JsonOption
from mortice.sim.distserve import Parallel, Placed, arrivals_at, published_rows, simulate
from mortice.sim.summary import percentiles
from mortice.specs.errors import RequestError
from mortice.specs.workload import TraceRequest, read_trace


class ModeName(StrEnum):
    disaggregated = "disaggregated"
    colocated = "colocated"


def distserve(
    trace: Annotated[Path, typer.Option(help="Trace file, plain or gzipped.")],
    model: Annotated[str, typer.Option(help="opt-13b or opt-66b.")] = "opt-13b",
    mode: Annotated[
        ModeName, typer.Option(help="Prefill and decode apart, or together.")
    ] = ModeName.disaggregated,
    prefill: Annotated[str, typer.Option(help="TP,PP of a prefill (or colocated) instance.")] = "2,1",
    decode: Annotated[str, typer.Option(help="TP,PP of a decode instance.")] = "1,1",
    num_prefill: Annotated[int, typer.Option(help="Prefill (or colocated) instances.")] = 1,
    num_decode: Annotated[int, typer.Option(help="Decode instances.")] = 1,
    rate: Annotated[float, typer.Option(help="Requests a second; the trace's gaps are scaled to it.")] = 1.0,
    skip: Annotated[int, typer.Option(help="Rows to skip, of those that are short enough.")] = 0,
    num: Annotated[int | None, typer.Option(help="Rows to take then. Default: all.")] = None,
    max_total: Annotated[
        int, typer.Option(help="Longest input and output together; longer rows are left out.")
    ] = 2048,
    slo_ttft_ms: Annotated[float, typer.Option(help="Limit on TTFT.")] = 250.0,
    slo_tpot_ms: Annotated[float, typer.Option(help="Limit on TPOT.")] = 100.0,
    as_json: JsonOption = False,
) -> None:
    """Run a trace through the published simulator's semantics (free transfer, no KV memory on decode instances)."""
    layout = _parallel(prefill, "prefill")
    placed = Placed(
        model=model,
        prefill=layout,
        decode=_parallel(decode, "decode") if mode is ModeName.disaggregated else None,
        num_prefill=num_prefill,
        num_decode=num_decode,
    )
    for name, value in (("rate", rate), ("slo_ttft_ms", slo_ttft_ms), ("slo_tpot_ms", slo_tpot_ms)):
        if not value > 0:
            raise RequestError(f"{name} must be above 0, not {value:g}", param=name)
    if min(num_prefill, num_decode) < 1:
        raise RequestError("num_prefill and num_decode count instances: at least 1", param="num_prefill")
    rows = _cut(read_trace(trace).requests, max_total, skip, num)
    found = simulate(placed, rows, arrivals_at(rows, rate))
    first, rest, both = found.attainment(slo_ttft_ms, slo_tpot_ms)
    answer = {
        "model": model,
        "mode": mode.value,
        "gpus": placed.gpus,
        "requests": len(rows),
        "rate": rate,
        "ttft_ms": percentiles(found.ttft_ms),
        "tpot_ms": percentiles(found.tpot_ms),
        "attainment_ttft": first,
        "attainment_tpot": rest,
        "attainment": both,
    }
    if as_json:
        sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")
        return
    table = Table(
        "",
        "p50",
        "p90",
        "p99",
        "within SLO",
        title=f"{model} {mode.value}, {rate:g} req/s, {len(rows)} requests",
    )
    for name, share in (("ttft_ms", first), ("tpot_ms", rest)):
        values = answer[name]
        assert isinstance(values, dict)
        table.add_row(name, *(f"{values[p]:.2f}" for p in ("p50", "p90", "p99")), f"{share:.1%}")
    table.add_row("both", "", "", "", f"{both:.1%}")
    Console().print(table)


def _cut(
    requests: tuple[TraceRequest, ...], max_total: int, skip: int, num: int | None
) -> list[TraceRequest]:
    """Rows by length first, then skipped and cut. Never fewer than asked for without a word."""
    if skip < 0 or (num is not None and num < 1):
        raise RequestError("skip must be 0 or more, num at least 1", param="skip" if skip < 0 else "num")
    rows = published_rows(requests, max_total)
    if len(rows) < skip + (num or 1):
        raise RequestError(
            f"the trace has {len(rows)} rows of at most {max_total} tokens; {skip} skipped and {num or 1} taken are more",
            param="num",
        )
    return rows[skip : skip + num if num is not None else None]


def _parallel(text: str, field: str) -> Parallel:
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise RequestError(f"{field} must be TP,PP, two numbers above 0, not {text!r}", param=field)
    return Parallel(int(parts[0]), int(parts[1]))
