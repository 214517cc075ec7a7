"""`mortice bench`: load on an OpenAI endpoint, and what its users would have felt."""

import os
import sys
from pathlib import Path

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
from mortice.cli import bench_options as opt
from mortice.specs.errors import RequestError
from mortice.specs.slo import SLO
from mortice.specs.workload import Clip


def bench(
    base_url: opt.BaseUrl = "http://127.0.0.1:8123/v1",
    model: opt.Model = None,
    api: opt.Api = opt.ApiName.completions,
    api_key_env: opt.ApiKeyEnv = "OPENAI_API_KEY",
    timeout: opt.Timeout = 600.0,
    ignore_eos: opt.IgnoreEos = True,
    temperature: opt.Temperature = 0.0,
    num_prompts: opt.NumPrompts = None,
    input_len: opt.InputLen = 128,
    output_len: opt.OutputLen = 64,
    concurrency: opt.Concurrency = None,
    rate: opt.Rate = None,
    arrival: opt.Arrival = None,
    cv: opt.Cv = None,
    prompts: opt.Prompts = opt.PromptKind.auto,
    seed: opt.Seed = 0,
    warmup: opt.Warmup = 2,
    max_duration: opt.MaxDuration = None,
    trace: opt.Trace = None,
    trace_scale: opt.TraceScale = None,
    trace_duration: opt.TraceDuration = None,
    jitter: opt.Jitter = False,
    max_input: opt.MaxInput = None,
    max_output: opt.MaxOutput = None,
    clip: opt.Clip = opt.ClipRule.truncate,
    slo_ttft_ms: opt.SloTtftMs = None,
    slo_tpot_ms: opt.SloTpotMs = None,
    slo_e2e_ms: opt.SloE2eMs = None,
    target: opt.Target = 0.9,
    goodput: opt.Goodput = False,
    gpus: opt.Gpus = None,
    json: opt.AsJson = False,
    output: opt.Output = None,
    plot: opt.Plot = None,
    compare: opt.Compare = None,
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
        result = record = run_loop(_search(job, gpus or 1))
        failure = None if result["goodput"]["sustained_rate"] else "no rate attains the SLO"
    else:
        result, loaded = run_loop(_run(job))
        record = result | {"requests": [request_record(t, loaded.started_s) for t in loaded.timelines]}
        failure = None if result["num_completed"] else "every request failed"
        if plot is not None:
            plot_run(result, loaded, plot)
    if output is not None:
        _write(output, record)
    if json:
        _emit(result)
    else:
        (show_goodput if goodput else show_result)(result, console)
    if result["void"]:
        print("warning: void, the client was the bottleneck", file=sys.stderr)
    if failure:
        print(f"error: {failure}", file=sys.stderr)
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
