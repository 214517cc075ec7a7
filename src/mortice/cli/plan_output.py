"""Options that the questions of `mortice plan` share, and how an answer leaves: table, JSON, picture."""

import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from mortice.plan.answer import Answer
from mortice.plan.charts import plot_format, save
from mortice.plan.show import show


class AttentionDtype(StrEnum):
    bf16 = "bf16"
    fp8 = "fp8"


class ConventionName(StrEnum):
    published = "published"
    honest = "honest"


ModelOption = Annotated[
    str, typer.Option(help="Catalogue name, config.json, or a folder with one.", metavar="NAME|PATH")
]
ModelsOption = Annotated[
    str, typer.Option(help="Comma-separated names or paths of config.json; or all.", metavar="NAMES")
]
HardwareOption = Annotated[
    str, typer.Option(help="Comma-separated names or hardware files; or all.", metavar="NAMES")
]
ContextOption = Annotated[str, typer.Option(help="Tokens: 8192, 32K (x 1024), 1M (10^6).", metavar="TOKENS")]
ConventionOption = Annotated[
    ConventionName, typer.Option(help="published: as the papers count; honest: tiles, head, router.")
]
PriceOption = Annotated[
    list[str] | None, typer.Option(help="NAME=USD_PER_HOUR, instead of the catalogue's; repeatable.")
]
TpotOption = Annotated[float, typer.Option(help="Milliseconds a token may take.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PlotOption = Annotated[Path | None, typer.Option(help="Picture, .png or .svg.")]
ProfileOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Measured kernels: a file of `plan profile`, aiconfigurator:FRAMEWORK (trtllm, sglang, vllm), or none. "
        "Default: the profile that ships for the hardware, if one does. Repeatable.",
        metavar="FILE|none",
    ),
]
KvOption = Annotated[str, typer.Option(help="Dtype of KV: bf16, fp8, int8, fp4, int4.")]
AttentionOption = Annotated[
    AttentionDtype, typer.Option("--attention", help="What attention is computed in, where the card has it.")
]
WeightsOption = Annotated[
    str | None, typer.Option(help="Dtype of weights. Default: 8 bit where the card computes in it.")
]


def check_plot(plot: Path | None) -> None:
    """Refuse a picture that cannot be written before anything is computed."""
    if plot is not None:
        plot_format(plot)


def emit(answer: Answer, *, as_json: bool, plot: Path | None, payload: Any = None) -> None:
    """Write the picture, then the table or JSON (`payload` instead of the whole document where given)."""
    if plot is not None:
        save(answer.charts, answer.title, plot)
    if as_json:
        document = answer.document() if payload is None else payload
        sys.stdout.write(msgspec.json.encode(_finite(msgspec.to_builtins(document))).decode() + "\n")
    else:
        console = Console()
        # A pipe has no width: long tables are not folded there.
        show(answer, console if console.is_terminal else Console(width=200))


def _finite(value: Any) -> Any:
    """JSON has no infinity: what has no value is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
