"""`mortice plan place`: the placement that serves most within the SLO, as the document that serve and sim read."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

from mortice.cli.plan_output import JsonOption, ModelOption, PlotOption, check_plot, emit
from mortice.plan.place import Search
from mortice.plan.place_answer import place_answer
from mortice.plan.place_candidates import Question
from mortice.plan.placement import formats_for
from mortice.sim.traffic import prepared
from mortice.specs.catalogue import load_hardware, load_model
from mortice.specs.deployment import dump_deployment
from mortice.specs.errors import RequestError
from mortice.specs.slo import SLO
from mortice.specs.workload import read_trace


class Way(StrEnum):
    mortice = "mortice"
    high = "high"
    low = "low"
    joint = "joint"


class Clipping(StrEnum):
    truncate = "truncate"
    drop = "drop"


def place(
    model: ModelOption,
    trace: Annotated[Path, typer.Option(help="Trace whose lengths are drawn from, plain or gzipped.")],
    hardware: Annotated[str, typer.Option(help="One name or hardware file.")] = "h100",
    gpus: Annotated[int, typer.Option(help="Devices to place on.")] = 8,
    slo_ttft_ms: Annotated[float, typer.Option(help="Limit on TTFT.")] = 500.0,
    slo_tpot_ms: Annotated[float, typer.Option(help="Limit on TPOT.")] = 50.0,
    target: Annotated[float, typer.Option(help="Share that must meet both.")] = 0.9,
    algorithm: Annotated[
        Way, typer.Option(help="high, low: DistServe's algorithms 1 and 2; joint: its code's.")
    ] = Way.mortice,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second that high and low replicate for.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Dtype of weights. Default: 8 bit where the card has it.")
    ] = None,
    max_total: Annotated[
        int | None, typer.Option(help="Longest input and output; longer ones are clipped.")
    ] = None,
    clip: Annotated[Clipping, typer.Option(help="What --max-total does to longer ones.")] = Clipping.drop,
    requests: Annotated[int, typer.Option(help="Requests of one simulated run.")] = 4000,
    processes: Annotated[int | None, typer.Option(help="Processes. Default: one a core.")] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals and lengths.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write the deployment document here.")] = None,
    plot: PlotOption = None,
    as_json: JsonOption = False,
) -> None:
    """Search layouts, counts and divisions by simulation; undivided workers are among them."""
    check_plot(plot)
    slo = SLO(ttft_ms=slo_ttft_ms, tpot_ms=slo_tpot_ms, target=target)
    slo.check()
    for name, value, least in (
        ("gpus", gpus, 1),
        ("requests", requests, 100),
        ("processes", processes or 1, 1),
    ):
        if not least <= value <= 1 << 20:
            raise RequestError(f"{name} must be at least {least}, not {value}", param=name)
    if rate is not None and not rate > 0:
        raise RequestError(f"rate must be above 0, not {rate:g}", param="rate")
    rows = read_trace(trace, strict=True)
    if max_total is not None:
        rows = prepared(rows, clip=clip.value, most=max_total)
    device = load_hardware(hardware)
    question = Question(
        model=load_model(model),
        served=model,
        hardware=device,
        hardware_name=hardware,
        gpus=gpus,
        slo=slo,
        formats=formats_for(device, weights, "bf16"),
        longest=max((r.prompt_len + r.output_len for r in rows.requests), default=0),
    )
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("simulating")

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        search = Search(
            question, rows.requests, num_requests=requests, seed=seed, processes=processes, progress=progress
        )
        found = search.run(algorithm.value, rate)
        answer = place_answer(question, search, found, rows, curves=plot is not None)
    if out is not None:
        out.write_text(f"# {answer.verdict}\n{dump_deployment(found.best.document)}")
    emit(answer, as_json=as_json, plot=plot)
