"""`mortice bench`: load on an OpenAI endpoint, and what its users would have felt."""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from mortice.bench.compare import compare as compare_results
from mortice.bench.compare import load_result
from mortice.bench.goodput import GoodputSearch, find_goodput
from mortice.bench.load import LoadRun
from mortice.bench.loop import run as run_loop
from mortice.bench.options import BenchOptions
from mortice.bench.plot import plot_format, plot_run
from mortice.bench.report import request_record
from mortice.bench.run import Bench
from mortice.bench.show import ProgressBar, show_comparison, show_goodput, show_result
from mortice.specs.errors import RequestError
from mortice.specs.slo import SLO
from mortice.specs.workload import Clip


class ApiName(StrEnum):
    completions = "completions"
    chat = "chat"


class ProcessName(StrEnum):
    poisson = "poisson"
    gamma = "gamma"


class ClipRule(StrEnum):
    truncate = "truncate"
    drop = "drop"


class PromptKind(StrEnum):
    auto = "auto"
    words = "words"
    token_ids = "token-ids"


_LOAD, _TRACE, _SLO, _SERVER, _OUT = "Load", "Trace replay", "Latency targets", "Server", "Output"


def bench(
    base_url: Annotated[
        str, typer.Option(help="Up to /v1.", rich_help_panel=_SERVER)
    ] = "http://127.0.0.1:8123/v1",
    model: Annotated[
        str | None, typer.Option(help="Default: the first the server lists.", rich_help_panel=_SERVER)
    ] = None,
    api: Annotated[
        ApiName, typer.Option(help="Which route is measured.", rich_help_panel=_SERVER)
    ] = ApiName.completions,
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable with the API key.", rich_help_panel=_SERVER)
    ] = "OPENAI_API_KEY",
    timeout: Annotated[
        float, typer.Option(help="Seconds until a request has failed.", rich_help_panel=_SERVER)
    ] = 600.0,
    ignore_eos: Annotated[
        bool, typer.Option(help="Ask for answers of full length.", rich_help_panel=_SERVER)
    ] = True,
    temperature: Annotated[float, typer.Option(help="0: greedy.", rich_help_panel=_SERVER)] = 0.0,
    num_prompts: Annotated[
        int | None, typer.Option(help="Requests. Default: 16, or the whole trace.", rich_help_panel=_LOAD)
    ] = None,
    input_len: Annotated[
        int, typer.Option(help="Prompt tokens of each request.", rich_help_panel=_LOAD)
    ] = 128,
    output_len: Annotated[
        int, typer.Option(help="Output tokens of each request.", rich_help_panel=_LOAD)
    ] = 64,
    concurrency: Annotated[
        int | None, typer.Option(help="Closed loop: requests at once. Default: 8.", rich_help_panel=_LOAD)
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Open loop: requests a second.", rich_help_panel=_LOAD)
    ] = None,
    arrival: Annotated[
        ProcessName | None,
        typer.Option(help="Open loop: kind of gaps. Default: poisson.", rich_help_panel=_LOAD),
    ] = None,
    cv: Annotated[
        float | None,
        typer.Option(help="Variation of gamma gaps: 1 is poisson, 2 bursty.", rich_help_panel=_LOAD),
    ] = None,
    prompts: Annotated[
        PromptKind,
        typer.Option(help="auto: words, or ids where words miss the length.", rich_help_panel=_LOAD),
    ] = PromptKind.auto,
    seed: Annotated[int, typer.Option(help="Of prompts, arrivals and intervals.", rich_help_panel=_LOAD)] = 0,
    warmup: Annotated[
        int, typer.Option(help="Requests sent before and left out.", rich_help_panel=_LOAD)
    ] = 2,
    max_duration: Annotated[
        float | None, typer.Option(help="Seconds after which no request is sent.", rich_help_panel=_LOAD)
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Azure, Mooncake or BurstGPT file, .gz or not.", rich_help_panel=_TRACE),
    ] = None,
    trace_scale: Annotated[
        float | None, typer.Option(help="2: twice as fast.", rich_help_panel=_TRACE)
    ] = None,
    trace_duration: Annotated[
        float | None, typer.Option(help="Seconds of the trace, in its own time.", rich_help_panel=_TRACE)
    ] = None,
    jitter: Annotated[
        bool,
        typer.Option("--jitter", help="Spread arrivals over the trace's 3 s tick.", rich_help_panel=_TRACE),
    ] = False,
    max_input: Annotated[int | None, typer.Option(help="Clip prompts to it.", rich_help_panel=_TRACE)] = None,
    max_output: Annotated[
        int | None, typer.Option(help="Clip outputs to it.", rich_help_panel=_TRACE)
    ] = None,
    clip: Annotated[
        ClipRule, typer.Option(help="Shorten longer rows, or leave them out.", rich_help_panel=_TRACE)
    ] = ClipRule.truncate,
    slo_ttft_ms: Annotated[float | None, typer.Option(help="Limit on TTFT.", rich_help_panel=_SLO)] = None,
    slo_tpot_ms: Annotated[float | None, typer.Option(help="Limit on TPOT.", rich_help_panel=_SLO)] = None,
    slo_e2e_ms: Annotated[
        float | None, typer.Option(help="Limit on the whole.", rich_help_panel=_SLO)
    ] = None,
    target: Annotated[
        float, typer.Option(help="Share that must meet all limits.", rich_help_panel=_SLO)
    ] = 0.9,
    goodput: Annotated[
        bool, typer.Option("--goodput", help="Find the largest rate that attains it.", rich_help_panel=_SLO)
    ] = False,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs behind the server, to divide goodput by.", rich_help_panel=_SLO)
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_OUT)
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="JSON file with a record of each request.", rich_help_panel=_OUT)
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture, .png or .svg.", rich_help_panel=_OUT)] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Two result files; runs nothing.", rich_help_panel=_OUT)
    ] = None,
) -> None:
    """Measure an OpenAI endpoint: TTFT, TPOT, ITL, end-to-end latency, throughput, SLO attainment, goodput.

    A closed loop by default; --rate makes it an open loop, --trace replays real arrivals.
    """
    console = Console(soft_wrap=True)
    if compare is not None:
        comparison = compare_results(load_result(compare[0]), load_result(compare[1]))
        _emit(comparison) if json else show_comparison(comparison, console)
        return
    if goodput and rate is None and trace is None:
        rate = 1.0  # where the search begins
    options = BenchOptions(
        base_url=base_url,
        model=model,
        api=api.value,
        api_key=os.environ.get(api_key_env),
        num_prompts=num_prompts,
        input_len=input_len,
        output_len=output_len,
        concurrency=concurrency,
        rate=rate,
        arrival=arrival.value if arrival else None,
        cv=cv,
        trace=trace,
        trace_scale=trace_scale,
        trace_duration_s=trace_duration,
        jitter=jitter,
        clip=Clip(max_input=max_input, max_output=max_output, rule=clip.value),
        seed=seed,
        warmup=warmup,
        max_duration_s=max_duration,
        timeout_s=timeout,
        temperature=temperature,
        ignore_eos=ignore_eos,
        prompts=prompts.value,
        slo=SLO(ttft_ms=slo_ttft_ms, tpot_ms=slo_tpot_ms, e2e_ms=slo_e2e_ms, target=target),
    )
    _check_outputs(options, goodput=goodput, gpus=gpus, plot=plot, output=output)
    job = Bench(options, ProgressBar())
    if goodput:
        result = run_loop(_search(job, gpus or 1))
        records: list[dict] = []
        failed = result["goodput"]["sustained_rate"] == 0
    else:
        result, loaded = run_loop(_run(job))
        records = [request_record(t, loaded.started_s) for t in loaded.timelines]
        failed = result["num_completed"] == 0
        if plot is not None:
            plot_run(result, loaded, plot)
    if output is not None:
        _write(output, result if goodput else result | {"requests": records})
    if json:
        _emit(result)
    elif goodput:
        show_goodput(result, console)
    else:
        show_result(result, console)
    if result["void"]:
        print("warning: void, the client was the bottleneck", file=sys.stderr)
    if failed:
        what = "no rate attains the SLO" if goodput else "every request failed"
        print(f"error: {what}", file=sys.stderr)
        raise typer.Exit(1)


def _check_outputs(
    options: BenchOptions, *, goodput: bool, gpus: int | None, plot: Path | None, output: Path | None
) -> None:
    """Refuse what cannot be done before any load is sent."""
    if goodput and not options.slo.limits():
        raise RequestError(
            "--goodput needs a limit: --slo-ttft-ms, --slo-tpot-ms or --slo-e2e-ms", param="--goodput"
        )
    if gpus is not None and not goodput:
        raise RequestError("--gpus divides a goodput: add --goodput", param="--gpus")
    if gpus is not None and gpus < 1:
        raise RequestError(f"--gpus must be at least 1, not {gpus}", param="--gpus")
    if plot is not None and goodput:
        raise RequestError("--plot draws one run: leave out --goodput", param="--plot")
    if plot is not None:
        plot_format(plot)
    for flag, path in (("--plot", plot), ("--output", output)):
        if path is not None and not path.absolute().parent.is_dir():
            raise RequestError(f"{flag}: there is no folder {path.parent}", param=flag)


async def _run(job: Bench) -> tuple[dict, LoadRun]:
    try:
        await job.prepare()
        return await job.run()
    finally:
        job.close()


async def _search(job: Bench, num_gpus: int) -> dict:
    try:
        await job.prepare()
        start_rate = job.workload.rate or 1.0
        return await find_goodput(
            job, GoodputSearch(job.options.slo.target), start_rate=start_rate, num_gpus=num_gpus
        )
    finally:
        job.close()


def _emit(document: dict) -> None:
    sys.stdout.write(msgspec.json.encode(document).decode() + "\n")


def _write(path: Path, document: dict) -> None:
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1))
    except OSError as error:
        raise RequestError(f"cannot write {path}: {error.strerror}", param="--output") from error
