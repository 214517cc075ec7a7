"""`mortice plan afd | ep | supernode | kv | compare`: which joint is worth cutting, on how many instances."""

from pathlib import Path
from typing import Annotated

import typer

from mortice.cli.plan_output import (
    AttentionDtype,
    AttentionOption,
    ContextOption,
    HardwareOption,
    JsonOption,
    KvOption,
    ModelOption,
    PlotOption,
    PriceOption,
    ProfileOption,
    TpotOption,
    WeightsOption,
    check_plot,
    emit,
)
from mortice.cost import convention
from mortice.plan import afd as planner
from mortice.plan import inputs
from mortice.plan.afd_formulas import read_lengths
from mortice.plan.afd_question import afd_question
from mortice.plan.compare import compare_question, devices_of, read_plans
from mortice.plan.ep import ep_question
from mortice.plan.kv import kv_question
from mortice.plan.measured import read_measured
from mortice.plan.supernode import supernode_question
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec


def afd(
    model: ModelOption,
    hardware: Annotated[str, typer.Option(help="One name, or ATTENTION/FFN.", metavar="HW|A/F")] = "h800",
    context: ContextOption = "8192",
    trace: Annotated[
        Path | None,
        typer.Option(help="Azure, Mooncake or BurstGPT trace: its lengths stand in for --context."),
    ] = None,
    tpot: TpotOption = 50.0,
    packages: Annotated[int, typer.Option(help="Most packages a plan may use.")] = 128,
    num_attention: Annotated[int | None, typer.Option(help="Whole A instances, with --num-ffn.")] = None,
    num_ffn: Annotated[int | None, typer.Option(help="Whole F instances, with --num-attention.")] = None,
    micro_batches: Annotated[int | None, typer.Option(help="Default: the best of 2, 3, 4.")] = None,
    selective: Annotated[
        bool, typer.Option("--selective", help="Send a token only to F peers it needs, not to all.")
    ] = False,
    one_domain: Annotated[
        bool, typer.Option("--one-domain", help="A and F inside one scale-up domain, not over NICs.")
    ] = False,
    imbalance: Annotated[
        float | None,
        typer.Option(help="Busiest experts over the mean load. Default: uniform random routing."),
    ] = None,
    fused: Annotated[
        bool, typer.Option("--fused", help="One kernel a layer on both sides, as FastAFD builds it.")
    ] = False,
    kv: KvOption = "fp8",
    weights: WeightsOption = None,
    attention: AttentionOption = AttentionDtype.bf16,
    price: PriceOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
    plot: PlotOption = None,
) -> None:
    """Attention and experts on different instances: the best whole-instance plan, or a plain "loses here"."""
    check_plot(plot)
    if packages < 1 or packages > 4096:
        raise RequestError(f"packages must be 1 to 4096, not {packages}", param="packages")
    _check_imbalance(imbalance)
    a, f = _pair(hardware, price)
    lengths = read_lengths(trace) if trace is not None else None
    p = planner.problem(
        inputs.one_model(model),
        a,
        f,
        round(lengths.mean) if lengths else inputs.context(context),
        context_variance=lengths.variance if lengths else 0.0,
        tpot_s=inputs.tpot_s(tpot),
        kv=kv,
        weights=weights,
        selective=selective,
        one_domain=one_domain,
        imbalance=imbalance,
        fused=fused,
        attention_dtype=attention.value,
        measured=read_measured(profile, [a, f]),
    )
    answer = afd_question(
        p,
        max_packages=packages,
        num_attention=num_attention,
        num_ffn=num_ffn,
        micro_batches=micro_batches,
        kv=kv,
        weights=weights,
        lengths=lengths,
    )
    emit(answer, as_json=as_json, plot=plot)


def _check_imbalance(imbalance: float | None) -> None:
    if imbalance is not None and not 1 <= imbalance <= 100:
        raise RequestError(
            f"imbalance is busiest over mean load, 1 to 100, not {imbalance:g}", param="imbalance"
        )


def _pair(hardware: str, price: list[str] | None) -> tuple[HardwareSpec, HardwareSpec]:
    """A path may hold slashes: only a name on each side of one is a pair."""
    names = [hardware] if Path(hardware).is_file() or "/" not in hardware else hardware.split("/")
    if len(names) > 2:
        raise RequestError(f"hardware must be one name or ATTENTION/FFN, got {hardware!r}", param="hardware")
    devices = inputs.hardware(",".join(names), convention("honest"), inputs.parse_prices(price or []))
    return devices[0], devices[-1]


def ep(
    model: ModelOption,
    hardware: Annotated[str, typer.Option(help="One name or hardware file.")] = "h800",
    tokens: Annotated[int, typer.Option(help="Tokens of one rank in a step.")] = 128,
    imbalance: Annotated[
        float | None, typer.Option(help="Measured; default: uniform random routing.")
    ] = None,
    weights: WeightsOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
    plot: PlotOption = None,
) -> None:
    """Expert parallelism: group sizes, bytes deduplicated by node and rank, imbalance."""
    check_plot(plot)
    _check_imbalance(imbalance)
    devices = inputs.hardware(hardware, convention("honest"))
    if len(devices) != 1:
        raise RequestError("hardware: this question is about one device", param="hardware")
    answer = ep_question(
        inputs.one_model(model),
        devices[0],
        tokens,
        imbalance=imbalance,
        weights=weights,
        measured=read_measured(profile, devices),
    )
    emit(answer, as_json=as_json, plot=plot)


def supernode(
    model: ModelOption,
    rack: Annotated[str, typer.Option(help="Comma-separated racks or rack files; or all.")] = "all",
    context: ContextOption = "8192",
    prompt: Annotated[str, typer.Option(help="Tokens of the long prompt.")] = "1M",
    tpot: TpotOption = 50.0,
    as_json: JsonOption = False,
    plot: PlotOption = None,
) -> None:
    """A rack-scale domain against boards of eight: experts, AFD, and prefill of a very long prompt."""
    check_plot(plot)
    answer = supernode_question(
        inputs.one_model(model),
        inputs.racks(rack),
        context=inputs.context(context),
        long_tokens=inputs.context(prompt),
        tpot_s=inputs.tpot_s(tpot),
    )
    emit(answer, as_json=as_json, plot=plot)


def kv(
    model: ModelOption,
    hardware: HardwareOption = "h200",
    context: ContextOption = "8192",
    kv_dtype: Annotated[str, typer.Option("--kv", help="Dtype of KV.")] = "fp8",
    weights: WeightsOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
    plot: PlotOption = None,
) -> None:
    """KV: how much fits, how long it moves, from which bandwidth fetching beats computing."""
    check_plot(plot)
    devices = inputs.hardware(hardware, convention("honest"))
    answer = kv_question(
        inputs.one_model(model),
        devices,
        inputs.context(context),
        kv=kv_dtype,
        weights=weights,
        measured=read_measured(profile, devices),
    )
    emit(answer, as_json=as_json, plot=plot)


def compare(
    model: ModelOption,
    plan: Annotated[list[str], typer.Option(help="HW, A/F, HW:4A2F or A/F:4A2F; give two or more.")],
    context: ContextOption = "8192",
    tpot: TpotOption = 50.0,
    packages: Annotated[int, typer.Option(help="Most packages a plan may use.")] = 128,
    attention: AttentionOption = AttentionDtype.bf16,
    price: PriceOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
    plot: PlotOption = None,
) -> None:
    """Two or more plans side by side."""
    check_plot(plot)
    plans = read_plans(plan, inputs.parse_prices(price or []))
    answer = compare_question(
        inputs.one_model(model),
        plans,
        inputs.context(context),
        tpot_s=inputs.tpot_s(tpot),
        max_packages=packages,
        attention=attention.value,
        measured=read_measured(profile, devices_of(plans)),
    )
    emit(answer, as_json=as_json, plot=plot)
