"""`mortice serve`"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from mortice.bench.loop import new_loop
from mortice.cli.ask import ask
from mortice.cli.serve_pages import pages
from mortice.models import store
from mortice.obs.log import setup_log
from mortice.serve.options import ServeOptions, read_api_keys
from mortice.serve.start import serve_deployment
from mortice.specs.checked import checked
from mortice.specs.deployment import Deployment, load_deployment
from mortice.specs.errors import RequestError
from mortice.transport.curve import read_token

_MODEL, _SPLIT, _ROLES, _LIMITS, _EDGE = "Model", "Prefill and decode", "Roles", "Limits", "HTTP"


def serve(
    model: Annotated[
        str | None,
        typer.Option(
            help="A folder, a .gguf file or a name; smollm2 comes by itself.", rich_help_panel=_MODEL
        ),
    ] = None,
    deployment: Annotated[
        Path | None, typer.Option(help="A deployment document; options override it.")
    ] = None,
    served_name: Annotated[
        str | None, typer.Option(help="Name that clients use.", rich_help_panel=_MODEL)
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16.", rich_help_panel=_MODEL)
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(help="none, int8, int4, or keep what a GGUF file has.", rich_help_panel=_MODEL),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.", rich_help_panel=_MODEL)] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(help="A LoRA adapter, as name=folder; may be repeated.", rich_help_panel=_MODEL),
    ] = None,
    speculate: Annotated[
        str | None, typer.Option(help="Draft tokens by ngram or draft.", rich_help_panel=_MODEL)
    ] = None,
    draft_model: Annotated[
        str | None, typer.Option(help="The small model of --speculate draft.", rich_help_panel=_MODEL)
    ] = None,
    max_draft: Annotated[
        int | None, typer.Option(help="Draft tokens a step at most.", rich_help_panel=_MODEL)
    ] = None,
    deterministic: Annotated[
        bool | None,
        typer.Option(help="The same text at any concurrency, more slowly.", rich_help_panel=_MODEL),
    ] = None,
    prefill: Annotated[
        int | None, typer.Option(help="Prefill workers; 0 serves colocated.", rich_help_panel=_SPLIT)
    ] = None,
    decode: Annotated[int | None, typer.Option(help="Decode workers.", rich_help_panel=_SPLIT)] = None,
    threads: Annotated[
        int | None, typer.Option(help="Compute threads a worker.", rich_help_panel=_SPLIT)
    ] = None,
    transport: Annotated[
        str | None, typer.Option(help="auto, shm, tcp or nixl.", rich_help_panel=_SPLIT)
    ] = None,
    transfer: Annotated[str | None, typer.Option(help="map, pull or push.", rich_help_panel=_SPLIT)] = None,
    checksum: Annotated[
        str | None, typer.Option(help="full, sampled or off.", rich_help_panel=_SPLIT)
    ] = None,
    local_prefill_tokens: Annotated[
        int | None,
        typer.Option(help="Uncached prompts up to this long stay with decode.", rich_help_panel=_SPLIT),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="Who wears which role: static, reactive, dopd or mortice.", rich_help_panel=_ROLES),
    ] = None,
    max_workers: Annotated[
        int | None,
        typer.Option(
            help="Workers may be started up to so many, and stopped; without it roles change, not numbers.",
            rich_help_panel=_ROLES,
        ),
    ] = None,
    slo_ttft_ms: Annotated[
        float | None, typer.Option(help="Limit on TTFT that the policy works for.", rich_help_panel=_ROLES)
    ] = None,
    slo_tpot_ms: Annotated[float | None, typer.Option(help="Limit on TPOT.", rich_help_panel=_ROLES)] = None,
    control_period_s: Annotated[
        float | None, typer.Option(help="Seconds between decisions.", rich_help_panel=_ROLES)
    ] = None,
    forecast: Annotated[
        str | None, typer.Option(help="last, ewma, arima or quantile.", rich_help_panel=_ROLES)
    ] = None,
    decisions: Annotated[
        Path | None,
        typer.Option(
            help="Write every event and decision to this file; mortice sim replay reads it.",
            rich_help_panel=_ROLES,
        ),
    ] = None,
    launcher: Annotated[
        str | None,
        typer.Option(help="Where workers run: local or ray (needs mortice[ray]).", rich_help_panel=_ROLES),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(help="A running Ray cluster; without it a small one here.", rich_help_panel=_ROLES),
    ] = None,
    workers_listen: Annotated[
        str | None,
        typer.Option(
            help="ADDRESS:PORT where workers of other hosts join (mortice worker --join); needs --token-file.",
            rich_help_panel=_ROLES,
        ),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Secret that joining hosts must know.", rich_help_panel=_ROLES)
    ] = None,
    kv_bytes: Annotated[
        int | None, typer.Option(help="Bytes of KV blocks a worker.", rich_help_panel=_LIMITS)
    ] = None,
    block_size: Annotated[
        int | None, typer.Option(help="Tokens a KV block.", rich_help_panel=_LIMITS)
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(help="Sequences a step.", rich_help_panel=_LIMITS)
    ] = None,
    token_budget: Annotated[int | None, typer.Option(help="Tokens a step.", rich_help_panel=_LIMITS)] = None,
    prefill_order: Annotated[
        str | None,
        typer.Option(
            help="fcfs, or length: short prompts together and first, long ones alone.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    max_context: Annotated[
        int | None, typer.Option(help="Tokens of prompt and answer.", rich_help_panel=_LIMITS)
    ] = None,
    max_queued: Annotated[
        int | None, typer.Option(help="Requests in flight before 429.", rich_help_panel=_LIMITS)
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.", rich_help_panel=_EDGE)] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free one.", rich_help_panel=_EDGE)
    ] = 8000,
    api_keys: Annotated[
        Path | None,
        typer.Option(help="File of API keys, one a line (or $MORTICE_API_KEYS).", rich_help_panel=_EDGE),
    ] = None,
    response_store: Annotated[
        str, typer.Option(help="SQLite file of /v1/responses; 'off' keeps none.", rich_help_panel=_EDGE)
    ] = ":memory:",
    trace_endpoint: Annotated[
        str | None, typer.Option(help="OTLP/HTTP endpoint for traces.", rich_help_panel=_EDGE)
    ] = None,
    ledger: Annotated[Path | None, typer.Option(help="Write one JSON line a step to FILE.<worker>.")] = None,
    question: Annotated[
        str | None, typer.Option("--ask", help="Ask this once the server is up, and stay up.")
    ] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Serve a model behind the OpenAI API, prefill and decode in workers of their own.

    $MORTICE_ADMIN_TOKEN opens the /admin routes to other hosts; without it they answer this host only.
    """
    chosen = load_deployment(deployment) if deployment else Deployment(model=model or "smollm2")
    chosen.check_served()
    if speculate or draft_model or max_draft:
        given = {
            "method": speculate or ("draft" if draft_model else None),
            "draft_model": draft_model,
            "max_draft": max_draft,
        }
        chosen = _override(chosen, speculation=_set(given))
    chosen = _override(
        chosen,
        model=model,
        served_name=served_name,
        dtype=dtype,
        quantize=quantize,
        device=device,
        prefill=prefill,
        decode=decode,
        threads=threads,
        deterministic=deterministic,
        local_prefill_tokens=local_prefill_tokens,
        ledger=str(ledger) if ledger else None,
        launcher=launcher,
        ray_address=ray_address,
        adapters=dict(map(_name_and_folder, adapter)) if adapter else None,
        transfer=_set({"transport": transport, "mode": transfer, "checksum": checksum}),
        limits=_set(
            {
                "kv_bytes": kv_bytes,
                "block_size": block_size,
                "max_num_seqs": max_num_seqs,
                "token_budget": token_budget,
                "prefill_order": prefill_order,
                "max_context": max_context,
            }
        ),
        admission=_set({"max_queued": max_queued}),
        cluster=_set(
            {
                "policy": policy,
                "max_gpus": max_workers,
                "slo": _slo(chosen, slo_ttft_ms, slo_tpot_ms),
                "period_s": control_period_s,
                "forecast": forecast,
            }
        ),
    )
    chosen.check()
    if log_level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise RequestError(
            f"log_level is debug, info, warning or error, not {log_level!r}", param="log_level"
        )
    setup_log(level=log_level.upper())
    options = ServeOptions(
        admission=chosen.admission,
        api_keys=read_api_keys(str(api_keys) if api_keys else None),
        admin_token=os.environ.get("MORTICE_ADMIN_TOKEN"),
        store=None if response_store == "off" else response_store,
        deployment=chosen,
        trace_endpoint=trace_endpoint,
        pages=pages(),
    )
    joining = _joining(workers_listen, token_file)
    if workers_listen is not None and chosen.transfer.listen == "127.0.0.1":
        # Others must reach the blocks of the workers here as well.
        chosen = _override(chosen, transfer={"listen": workers_listen.rpartition(":")[0].strip("[]")})
    drafter = chosen.speculation.draft_model if chosen.speculation else None

    async def run() -> None:
        async def on_ready(url: str) -> None:
            print(f"listening on {url}", flush=True)
            if question is not None:
                await ask(url, question, options.api_keys[0] if options.api_keys else None)

        await serve_deployment(
            chosen,
            options,
            model_path=store.pull(chosen.model, _say),
            draft_model_path=store.pull(drafter, _say) if drafter else None,
            host=host,
            port=port,
            decision_log=decisions,
            workers_listen=workers_listen,
            join_token=joining,
            on_ready=on_ready,
        )

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _set(values: dict[str, Any]) -> dict[str, Any] | None:
    """The values that were given; None if none was."""
    return {name: value for name, value in values.items() if value is not None} or None


def _override(deployment: Deployment, **given: Any) -> Deployment:
    """The deployment with the given fields in place of its own, checked like a document."""
    document = msgspec.to_builtins(deployment)
    for name, value in given.items():
        if isinstance(value, dict) and isinstance(document[name], dict):
            document[name] |= value
        elif value is not None:
            document[name] = value
    return checked(document, Deployment)


def _joining(address: str | None, token_file: Path | None) -> str:
    """The token of joining hosts, "" where none may join."""
    if (address is None) != (token_file is None):
        raise RequestError("--workers-listen and --token-file go together", param="workers_listen")
    if address is None or token_file is None:
        return ""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise RequestError(f"workers_listen is ADDRESS:PORT, not {address!r}", param="workers_listen")
    return read_token(token_file)


def _slo(deployment: Deployment, ttft_ms: float | None, tpot_ms: float | None) -> dict[str, Any] | None:
    given = _set({"ttft_ms": ttft_ms, "tpot_ms": tpot_ms})
    return given and msgspec.to_builtins(deployment.control.slo) | given


def _name_and_folder(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise RequestError(f"an adapter is given as name=folder, not {text!r}", param="adapter")
    return name, folder
