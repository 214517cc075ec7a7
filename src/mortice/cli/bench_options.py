"""The options of `mortice bench`: what each says."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer


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


def _option(text: str, panel: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=panel)


_LOAD, _TRACE, _SLO, _SERVER, _OUT = "Load", "Trace replay", "Latency targets", "Server", "Output"

BaseUrl = Annotated[str, _option("Up to /v1.", _SERVER)]
Model = Annotated[str | None, _option("Default: the first the server lists.", _SERVER)]
Api = Annotated[ApiName, _option("Which route is measured.", _SERVER)]
ApiKeyEnv = Annotated[str, _option("Environment variable with the API key.", _SERVER)]
Timeout = Annotated[float, _option("Seconds until a request has failed.", _SERVER)]
IgnoreEos = Annotated[bool, _option("Ask for answers of full length.", _SERVER)]
Temperature = Annotated[float, _option("0: greedy.", _SERVER)]

NumPrompts = Annotated[int | None, _option("Requests. Default: 16, or the whole trace.", _LOAD)]
InputLen = Annotated[int, _option("Prompt tokens of each request.", _LOAD)]
OutputLen = Annotated[int, _option("Output tokens of each request.", _LOAD)]
Concurrency = Annotated[int | None, _option("Closed loop: requests at once. Default: 8.", _LOAD)]
Rate = Annotated[float | None, _option("Open loop: requests a second.", _LOAD)]
Arrival = Annotated[ProcessName | None, _option("Open loop: kind of gaps. Default: poisson.", _LOAD)]
Cv = Annotated[float | None, _option("Variation of gamma gaps: 1 is poisson, 2 bursty.", _LOAD)]
Prompts = Annotated[PromptKind, _option("auto: words, or ids where words miss the length.", _LOAD)]
Seed = Annotated[int, _option("Of prompts, arrivals and intervals.", _LOAD)]
Warmup = Annotated[int, _option("Requests sent before and left out.", _LOAD)]
MaxDuration = Annotated[float | None, _option("Seconds after which no request is sent.", _LOAD)]

Trace = Annotated[Path | None, _option("Azure, Mooncake or BurstGPT file, .gz or not.", _TRACE)]
TraceScale = Annotated[float | None, _option("2: twice as fast.", _TRACE)]
TraceDuration = Annotated[float | None, _option("Seconds of the trace, in its own time.", _TRACE)]
Jitter = Annotated[bool, _option("Spread arrivals over the trace's 3 s tick.", _TRACE, "--jitter")]
MaxInput = Annotated[int | None, _option("Clip prompts to it.", _TRACE)]
MaxOutput = Annotated[int | None, _option("Clip outputs to it.", _TRACE)]
Clip = Annotated[ClipRule, _option("Shorten longer rows, or leave them out.", _TRACE)]

SloTtftMs = Annotated[float | None, _option("Limit on TTFT.", _SLO)]
SloTpotMs = Annotated[float | None, _option("Limit on TPOT.", _SLO)]
SloE2eMs = Annotated[float | None, _option("Limit on the whole.", _SLO)]
Target = Annotated[float, _option("Share that must meet all limits.", _SLO)]
Goodput = Annotated[bool, _option("Find the largest rate that attains it.", _SLO, "--goodput")]
Gpus = Annotated[int | None, _option("GPUs behind the server, to divide goodput by.", _SLO)]

AsJson = Annotated[bool, _option("One JSON object on stdout.", _OUT, "--json")]
Output = Annotated[Path | None, _option("JSON file with a record of each request.", _OUT)]
Plot = Annotated[Path | None, _option("Picture, .png or .svg.", _OUT)]
Compare = Annotated[tuple[Path, Path] | None, _option("Two result files; runs nothing.", _OUT)]
