"""`mortice plan roofline | cost | density | design | explain`: what in a model fights the hardware, and what it costs."""

from typing import Annotated

import typer

from mortice.cli.plan_output import (
    AttentionDtype,
    AttentionOption,
    ContextOption,
    ConventionName,
    HardwareOption,
    JsonOption,
    KvOption,
    ModelsOption,
    PlotOption,
    PriceOption,
    ProfileOption,
    TpotOption,
    check_plot,
    emit,
)
from mortice.cost import Speculation, convention
from mortice.plan import inputs
from mortice.plan.cost_question import cost_question
from mortice.plan.density import density_question
from mortice.plan.design import Frame, design_question
from mortice.plan.explain import explain_question
from mortice.plan.measured import MODELLED, read_measured
from mortice.plan.roofline import roofline_question
from mortice.specs.errors import RequestError


def roofline(
    model: ModelsOption = "all",
    hardware: HardwareOption = "h800,h20,a800,ascend-910b",
    context: ContextOption = "8192",
    convention_name: Annotated[ConventionName, typer.Option("--convention")] = ConventionName.published,
    kv: KvOption = "fp8",
    as_json: JsonOption = False,
    plot: PlotOption = None,
) -> None:
    """Attention designs against hardware ridge points, and what quantised KV changes."""
    check_plot(plot)
    rule = convention(convention_name.value)
    answer = roofline_question(
        inputs.models(model, rule),
        inputs.hardware(hardware, rule),
        inputs.context(context),
        rule,
        kv_dtype=kv,
    )
    emit(answer, as_json=as_json, plot=plot)


def cost(
    model: ModelsOption = "all",
    hardware: HardwareOption = "h800,h20,a800,ascend-910b",
    context: ContextOption = "8192",
    convention_name: Annotated[
        ConventionName,
        typer.Option(
            "--convention", help="published: Step-3's tables; honest: tiles, kernels, head, router."
        ),
    ] = ConventionName.honest,
    price: PriceOption = None,
    profile: ProfileOption = None,
    kv: KvOption = "fp8",
    attention: AttentionOption = AttentionDtype.bf16,
    drafted: Annotated[int, typer.Option(help="Tokens drafted a step (MTP and the like).")] = 0,
    accepted: Annotated[float, typer.Option(help="Mean tokens a step then yields, 1 to drafted + 1.")] = 1.0,
    as_json: JsonOption = False,
    plot: PlotOption = None,
) -> None:
    """USD per million tokens by phase (decode, prefill, training) and hardware, and the best pair. Several contexts: 8K,32K.

    --json prints a list with one object a model, hardware and context.
    """
    check_plot(plot)
    rule = convention(convention_name.value)
    devices = inputs.hardware(hardware, rule, inputs.parse_prices(price or []))
    answer = cost_question(
        inputs.models(model, rule),
        devices,
        inputs.contexts(context),
        rule,
        drafts=Speculation(drafted=drafted, accepted=accepted),
        kv_dtype=kv,
        attention=attention.value,
        measured=read_measured(profile, devices) if rule.kernel_shares else MODELLED,
    )
    said = [f"{a.name} = {a.value} ({a.why})" for a in answer.assumed]
    rows = [row | {"assumed": said} for row in answer.facts["costs"]]
    emit(answer, as_json=as_json, plot=plot, payload=rows)


def density(
    model: ModelsOption,
    hardware: HardwareOption = "h800,h20,a800,ascend-910b",
    convention_name: Annotated[ConventionName, typer.Option("--convention")] = ConventionName.honest,
    tpot: TpotOption = 50.0,
    fanout: Annotated[float, typer.Option(help="Times a token crosses the busier end of the link.")] = 1.0,
    weights: Annotated[str, typer.Option(help="Dtype of expert weights.")] = "fp8",
    net: Annotated[float | None, typer.Option(help="GB/s of a server's NICs, instead of the card's.")] = None,
    as_json: JsonOption = False,
    plot: PlotOption = None,
) -> None:
    """May experts be this sparse? The limits B_MoE and S/(H L), and how many experts would have to be active."""
    check_plot(plot)
    rule = convention(convention_name.value)
    if net is not None and not net > 0:
        raise RequestError(f"net must be above 0 GB/s, not {net:g}", param="net")
    answer = density_question(
        inputs.models(model, rule),
        inputs.hardware(hardware, rule),
        rule,
        tpot_s=inputs.tpot_s(tpot),
        weight_dtype=weights,
        fanout=fanout,
        net=net * 1e9 if net is not None else None,
    )
    emit(answer, as_json=as_json, plot=plot)


def design(
    attention_hardware: Annotated[str, typer.Option(help="Hardware that attention may use.")] = "h20,h800",
    ffn_hardware: Annotated[str, typer.Option(help="Hardware that experts may use.")] = "h800",
    layers: Annotated[int, typer.Option(help="Layers of the frame.")] = 61,
    hidden: Annotated[int, typer.Option(help="Hidden size of the frame.")] = 7168,
    rank: Annotated[int, typer.Option(help="Least effective rank: heads x head size.")] = 8192,
    active: Annotated[float, typer.Option(help="Active parameters in billions, met within 10 %.")] = 38.0,
    context: ContextOption = "8192",
    tpot: TpotOption = 50.0,
    price: PriceOption = None,
    as_json: JsonOption = False,
    plot: PlotOption = None,
) -> None:
    """Search model shapes whose intensity and density fit the hardware, under a floor on quality proxies."""
    check_plot(plot)
    for name, value, most in (("layers", layers, 4096), ("hidden", hidden, 1 << 17), ("rank", rank, 1 << 24)):
        if not 1 <= value <= most:
            raise RequestError(f"{name} must be at least 1 and at most {most:,}, not {value}", param=name)
    if not 0 < active <= 100_000:
        raise RequestError(
            f"active must be above 0 and at most 100,000 billion, not {active:g}", param="active"
        )
    rule, prices = convention("honest"), inputs.parse_prices(price or [])
    every = inputs.hardware(f"{attention_hardware},{ffn_hardware}", rule, prices)
    by_name = {device.name: device for device in every}
    pick = [
        [by_name[device.name] for device in inputs.hardware(names, rule)]
        for names in (attention_hardware, ffn_hardware)
    ]
    frame = Frame(
        num_layers=layers,
        hidden_size=hidden,
        min_rank=rank,
        active_params=active * 1e9,
        context=inputs.context(context),
        tpot_s=inputs.tpot_s(tpot),
    )
    emit(design_question(frame, pick[0], pick[1]), as_json=as_json, plot=plot)


def explain(
    name: Annotated[
        str | None,
        typer.Argument(help="A formula or table, such as step3.table6 or afd.period; none: list all."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="With --hardware: the numbers behind it.")] = None,
    hardware: Annotated[str | None, typer.Option(help="With --model: the numbers behind it.")] = None,
    context: ContextOption = "8192",
    convention_name: Annotated[ConventionName, typer.Option("--convention")] = ConventionName.published,
    as_json: JsonOption = False,
) -> None:
    """Any number back to its formula, inputs and source; published tables cell by cell."""
    rule = convention(convention_name.value)
    shape = inputs.one_model(model) if model is not None else None
    devices = inputs.hardware(hardware, rule) if hardware is not None else None
    if devices is not None and len(devices) != 1:
        raise RequestError("hardware: worked numbers are of one device", param="hardware")
    answer = explain_question(name, shape, devices[0] if devices else None, inputs.context(context), rule)
    emit(answer, as_json=as_json, plot=None)
