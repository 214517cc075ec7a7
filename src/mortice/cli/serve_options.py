"""The options of `mortice serve`: what each says, and which field of the deployment document it overrides."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from mortice.specs.checked import checked
from mortice.specs.deployment import Deployment
from mortice.specs.errors import RequestError


def _option(text: str, panel: str | None = None, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel)


_MODEL, _SPLIT, _ROLES, _LIMITS, _EDGE = "Model", "Prefill and decode", "Roles", "Limits", "HTTP"

ModelName = Annotated[
    str | None, _option("A folder, a .gguf file or a name; smollm2 comes by itself.", _MODEL)
]
DeploymentFile = Annotated[Path | None, _option("A deployment document; options override it.")]
ServedName = Annotated[str | None, _option("Name that clients use.", _MODEL)]
Dtype = Annotated[str | None, _option("float32, bfloat16 or float16.", _MODEL)]
Quantize = Annotated[str | None, _option("none, int8, int4, or keep what a GGUF file has.", _MODEL)]
Device = Annotated[str | None, _option("auto, cpu or cuda.", _MODEL)]
Adapter = Annotated[
    list[str] | None, _option("A LoRA adapter, as name=folder; may be repeated.", _MODEL, "--adapter")
]
Speculate = Annotated[str | None, _option("Draft tokens by ngram or draft.", _MODEL)]
DraftModel = Annotated[str | None, _option("The small model of --speculate draft.", _MODEL)]
MaxDraft = Annotated[int | None, _option("Draft tokens a step at most.", _MODEL)]
Deterministic = Annotated[bool | None, _option("The same text at any concurrency, more slowly.", _MODEL)]

Prefill = Annotated[int | None, _option("Prefill workers; 0 serves colocated.", _SPLIT)]
Decode = Annotated[int | None, _option("Decode workers.", _SPLIT)]
Threads = Annotated[int | None, _option("Compute threads a worker.", _SPLIT)]
Transport = Annotated[str | None, _option("auto, shm, tcp or nixl.", _SPLIT)]
Transfer = Annotated[str | None, _option("map, pull or push.", _SPLIT)]
Checksum = Annotated[str | None, _option("full, sampled or off.", _SPLIT)]
LocalPrefill = Annotated[int | None, _option("Uncached prompts up to this long stay with decode.", _SPLIT)]

Policy = Annotated[str | None, _option("Who wears which role: static, reactive, dopd or mortice.", _ROLES)]
MaxWorkers = Annotated[
    int | None,
    _option(
        "Workers may be started up to so many, and stopped; without it roles change, not numbers.", _ROLES
    ),
]
SloTtft = Annotated[float | None, _option("Limit on TTFT that the policy works for.", _ROLES)]
SloTpot = Annotated[float | None, _option("Limit on TPOT.", _ROLES)]
ControlPeriod = Annotated[float | None, _option("Seconds between decisions.", _ROLES)]
Forecast = Annotated[str | None, _option("last, ewma, arima or quantile.", _ROLES)]
Decisions = Annotated[
    Path | None,
    _option("Write every event and decision to this file; mortice sim replay reads it.", _ROLES),
]
Launcher = Annotated[str | None, _option("Where workers run: local or ray (needs mortice[ray]).", _ROLES)]
RayAddress = Annotated[str | None, _option("A running Ray cluster; without it a small one here.", _ROLES)]
WorkersListen = Annotated[
    str | None,
    _option(
        "ADDRESS:PORT where workers of other hosts join (mortice worker --join); needs --token-file.", _ROLES
    ),
]
TokenFile = Annotated[Path | None, _option("Secret that joining hosts must know.", _ROLES)]

KvBytes = Annotated[int | None, _option("Bytes of KV blocks a worker.", _LIMITS)]
BlockSize = Annotated[int | None, _option("Tokens a KV block.", _LIMITS)]
MaxNumSeqs = Annotated[int | None, _option("Sequences a step.", _LIMITS)]
TokenBudget = Annotated[int | None, _option("Tokens a step.", _LIMITS)]
PrefillOrder = Annotated[
    str | None, _option("fcfs, or length: short prompts together and first, long ones alone.", _LIMITS)
]
MaxContext = Annotated[int | None, _option("Tokens of prompt and answer.", _LIMITS)]
MaxQueued = Annotated[int | None, _option("Requests in flight before 429.", _LIMITS)]

Host = Annotated[str, _option("Address to listen on.", _EDGE)]
Port = Annotated[int, _option("Port to listen on; 0 takes a free one.", _EDGE)]
ApiKeys = Annotated[Path | None, _option("File of API keys, one a line (or $MORTICE_API_KEYS).", _EDGE)]
ResponseStore = Annotated[str, _option("SQLite file of /v1/responses; 'off' keeps none.", _EDGE)]
TraceEndpoint = Annotated[str | None, _option("OTLP/HTTP endpoint for traces.", _EDGE)]
Ledger = Annotated[Path | None, _option("Write one JSON line a step to FILE.<worker>.")]
Ask = Annotated[str | None, _option("Ask this once the server is up, and stay up.", None, "--ask")]
LogLevel = Annotated[str, _option("debug, info, warning or error.")]

#: option -> field of the deployment document
FIELDS = {
    "model": "model",
    "served_name": "served_name",
    "dtype": "dtype",
    "quantize": "quantize",
    "device": "device",
    "adapter": "adapters",
    "speculate": "speculation.method",
    "draft_model": "speculation.draft_model",
    "max_draft": "speculation.max_draft",
    "deterministic": "deterministic",
    "prefill": "prefill",
    "decode": "decode",
    "threads": "threads",
    "transport": "transfer.transport",
    "transfer": "transfer.mode",
    "checksum": "transfer.checksum",
    "local_prefill_tokens": "local_prefill_tokens",
    "policy": "cluster.policy",
    "max_workers": "cluster.max_gpus",
    "slo_ttft_ms": "cluster.slo.ttft_ms",
    "slo_tpot_ms": "cluster.slo.tpot_ms",
    "control_period_s": "cluster.period_s",
    "forecast": "cluster.forecast",
    "launcher": "launcher",
    "ray_address": "ray_address",
    "kv_bytes": "limits.kv_bytes",
    "block_size": "limits.block_size",
    "max_num_seqs": "limits.max_num_seqs",
    "token_budget": "limits.token_budget",
    "prefill_order": "limits.prefill_order",
    "max_context": "limits.max_context",
    "max_queued": "admission.max_queued",
    "ledger": "ledger",
}


def override(deployment: Deployment, options: Mapping[str, Any]) -> Deployment:
    """The deployment with the options that were given in place of its fields, checked like a document.

    Args:
        deployment: Read from a file, or the default one.
        options: Option -> value, None where it was not given; options that are no fields are left alone.

    Raises:
        RequestError: A value that its field does not take.
    """
    given = {name: options[name] for name in FIELDS if options.get(name) is not None}
    if adapters := given.pop("adapter", None):
        given["adapter"] = deployment.adapters | dict(map(_name_and_folder, adapters))
    if "draft_model" in given:
        given.setdefault("speculate", "draft")
    document = msgspec.to_builtins(deployment)
    if {"slo_ttft_ms", "slo_tpot_ms"} & given.keys():  # one limit given leaves the other as it is
        document["cluster"] = (document["cluster"] or {}) | {
            "slo": msgspec.to_builtins(deployment.control.slo)
        }
    for name, value in given.items():
        *parents, field = FIELDS[name].split(".")
        section = document
        for parent in parents:
            section[parent] = section.get(parent) or {}
            section = section[parent]
        section[field] = str(value) if isinstance(value, Path) else value
    return checked(document, Deployment)


def _name_and_folder(text: str) -> tuple[str, str]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise RequestError(f"an adapter is given as name=folder, not {text!r}", param="adapter")
    return name, folder
