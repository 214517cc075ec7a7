"""`mortice serve`"""

import asyncio
import os
import sys
from pathlib import Path

import msgspec
import typer

from mortice.bench.loop import new_loop
from mortice.cli import serve_options as opt
from mortice.cli.ask import ask
from mortice.cli.serve_pages import pages
from mortice.models import store
from mortice.obs.log import setup_log
from mortice.serve.options import ServeOptions, read_api_keys
from mortice.serve.start import serve_deployment
from mortice.specs.deployment import Deployment, load_deployment
from mortice.specs.errors import RequestError
from mortice.transport.curve import read_token


def serve(
    context: typer.Context,
    model: opt.ModelName = None,
    deployment: opt.DeploymentFile = None,
    served_name: opt.ServedName = None,
    dtype: opt.Dtype = None,
    quantize: opt.Quantize = None,
    device: opt.Device = None,
    adapter: opt.Adapter = None,
    speculate: opt.Speculate = None,
    draft_model: opt.DraftModel = None,
    max_draft: opt.MaxDraft = None,
    deterministic: opt.Deterministic = None,
    prefill: opt.Prefill = None,
    decode: opt.Decode = None,
    threads: opt.Threads = None,
    transport: opt.Transport = None,
    transfer: opt.Transfer = None,
    checksum: opt.Checksum = None,
    local_prefill_tokens: opt.LocalPrefill = None,
    policy: opt.Policy = None,
    max_workers: opt.MaxWorkers = None,
    slo_ttft_ms: opt.SloTtft = None,
    slo_tpot_ms: opt.SloTpot = None,
    control_period_s: opt.ControlPeriod = None,
    forecast: opt.Forecast = None,
    decisions: opt.Decisions = None,
    launcher: opt.Launcher = None,
    ray_address: opt.RayAddress = None,
    workers_listen: opt.WorkersListen = None,
    token_file: opt.TokenFile = None,
    kv_bytes: opt.KvBytes = None,
    block_size: opt.BlockSize = None,
    max_num_seqs: opt.MaxNumSeqs = None,
    token_budget: opt.TokenBudget = None,
    prefill_order: opt.PrefillOrder = None,
    max_context: opt.MaxContext = None,
    max_queued: opt.MaxQueued = None,
    host: opt.Host = "127.0.0.1",
    port: opt.Port = 8000,
    api_keys: opt.ApiKeys = None,
    response_store: opt.ResponseStore = ":memory:",
    trace_endpoint: opt.TraceEndpoint = None,
    ledger: opt.Ledger = None,
    question: opt.Ask = None,
    log_level: opt.LogLevel = "info",
) -> None:
    """Serve a model behind the OpenAI API, prefill and decode in workers of their own.

    $MORTICE_ADMIN_TOKEN opens the /admin routes to other hosts; without it they answer this host only.
    """
    # Options of the deployment are read through `context`, by the table beside their texts.
    base = load_deployment(deployment) if deployment else Deployment(model=model or "smollm2")
    base.check_served()
    chosen = opt.override(base, context.params)
    chosen.check()
    _set_up_log(log_level)
    options = ServeOptions(
        admission=chosen.admission,
        api_keys=read_api_keys(str(api_keys) if api_keys else None),
        admin_token=os.environ.get("MORTICE_ADMIN_TOKEN"),
        store=None if response_store == "off" else response_store,
        deployment=chosen,
        trace_endpoint=trace_endpoint,
        pages=pages(),
    )
    join_token = _join_token(workers_listen, token_file)
    if workers_listen is not None and chosen.transfer.listen == "127.0.0.1":
        # Others must reach the blocks of the workers here as well.
        listen = workers_listen.rpartition(":")[0].strip("[]")
        chosen = msgspec.structs.replace(
            chosen, transfer=msgspec.structs.replace(chosen.transfer, listen=listen)
        )
    drafter = chosen.speculation.draft_model if chosen.speculation else None

    async def on_ready(url: str) -> None:
        print(f"listening on {url}", flush=True)
        if question is not None:
            await ask(url, question, options.api_keys[0] if options.api_keys else None)

    serving = serve_deployment(
        chosen,
        options,
        model_path=store.pull(chosen.model, _say),
        draft_model_path=store.pull(drafter, _say) if drafter else None,
        host=host,
        port=port,
        decision_log=decisions,
        workers_listen=workers_listen,
        join_token=join_token,
        on_ready=on_ready,
    )
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(serving)


def _set_up_log(level: str) -> None:
    if level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise RequestError(f"log_level is debug, info, warning or error, not {level!r}", param="log_level")
    setup_log(level=level.upper())


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _join_token(address: str | None, token_file: Path | None) -> str:
    """The token of joining hosts, "" where none may join."""
    if (address is None) != (token_file is None):
        raise RequestError("--workers-listen and --token-file go together", param="workers_listen")
    if address is None or token_file is None:
        return ""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise RequestError(f"workers_listen is ADDRESS:PORT, not {address!r}", param="workers_listen")
    return read_token(token_file)
