"""`plan density`: does the network let this mixture of experts be compute bound, and what would?"""

from collections.abc import Sequence

import msgspec

from mortice.cost import PUBLISHED, Convention, Links, dtype_bytes
from mortice.cost.published import cost_dtype
from mortice.plan.answer import Answer, Assumed, Column, Lines, Mark, Series, Table
from mortice.plan.density_limit import PRINTED_STAGE_S, DensityTerms, experts_needed
from mortice.plan.inputs import device_assumptions, model_assumptions
from mortice.plan.words import scaled
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import FfnShape, ModelShape


class DensityRow(msgspec.Struct, frozen=True, kw_only=True):
    """One model on one hardware, with every term."""

    model: str
    hardware: str
    density: float
    min_density: float
    fits: bool
    num_experts_needed: int
    num_experts_active: int  # routed, today
    net_needed_bytes_per_s: float  # of a server
    net_bytes_per_s: float
    flops_per_byte: float
    dense_batch: float
    moe_batch: float
    model_term: float  # S / (H L)
    hardware_term: float  # FLOPS / (Net BW beta)
    ffn_utilisation: float  # share of peak that experts reach: S / S_min where the network binds


def server_net(device: HardwareSpec, rule: Convention) -> float:
    """Bytes a second that one server's NICs carry in one direction; the printed peak in the published convention,
    what is attained in the honest one."""
    link = device.link("scale_out")
    attained = 1.0 if rule is PUBLISHED else Links(device).attained(link)
    return link.bytes_per_s * attained * device.packages_per_node


def terms(
    model: ModelShape,
    device: HardwareSpec,
    rule: Convention,
    *,
    tpot_s: float = 0.05,
    weight_dtype: str = "fp8",
    fanout: float = 1.0,
    net: float | None = None,
) -> DensityTerms:
    """Every term of the limit for this pair. The stage is a third of TPOT (50 ms is printed as 11.1 ms x 1.5)."""
    printed = rule is PUBLISHED and tpot_s == 0.05
    return DensityTerms(
        hidden_size=model.hidden_size,
        num_layers=model.num_layers,
        flops_per_byte=device.ridge(cost_dtype(device)),
        net=net if net is not None else server_net(device, rule),
        stage_s=PRINTED_STAGE_S if printed else tpot_s / 3,
        weight_bytes=dtype_bytes(weight_dtype),
        fanout=fanout,
    )


def density_row(model: ModelShape, device: HardwareSpec, limit: DensityTerms) -> DensityRow:
    experts = _experts(model)
    have = experts.density
    return DensityRow(
        model=model.name,
        hardware=device.name,
        density=have,
        min_density=limit.min_density,
        fits=have >= limit.min_density,
        num_experts_needed=experts_needed(limit.min_density, experts.num_experts, experts.num_shared),
        num_experts_active=experts.top_k,
        net_needed_bytes_per_s=limit.net_needed(have),
        net_bytes_per_s=limit.net,
        flops_per_byte=limit.flops_per_byte,
        dense_batch=limit.dense_batch,
        moe_batch=limit.moe_batch(have),
        model_term=have / (model.hidden_size * model.num_layers),
        hardware_term=limit.model_term,
        ffn_utilisation=min(1.0, have / limit.min_density),
    )


def density_question(
    shapes: Sequence[ModelShape],
    devices: Sequence[HardwareSpec],
    rule: Convention,
    *,
    tpot_s: float = 0.05,
    weight_dtype: str = "fp8",
    fanout: float = 1.0,
    net: float | None = None,
) -> Answer:
    """Step-3's table 7 for any model and hardware. Raises RequestError for a model without experts."""
    dense = [m.name for m in shapes if m.moe is None]
    mixtures = [m for m in shapes if m.moe is not None]
    if not mixtures:
        raise RequestError(f"model: {', '.join(dense)} has no experts, so there is no density", param="model")
    if not tpot_s > 0:
        raise RequestError(f"tpot must be above 0, not {tpot_s:g}", param="tpot")
    rows = [
        density_row(m, d, terms(m, d, rule, tpot_s=tpot_s, weight_dtype=weight_dtype, fanout=fanout, net=net))
        for m in mixtures
        for d in devices
    ]
    plain = [msgspec.to_builtins(row) for row in rows]
    single = plain[0] if len(plain) == 1 else {}
    notes = [f"{name} is dense and was left out" for name in dense]
    notes += [_remedy(row) for row in rows if not row.fits]
    return Answer(
        verb="density",
        title=f"How sparse the experts may be, {rule.name} convention",
        verdict=_verdict(rows),
        tables=(_table(plain),),
        charts=(_chart(rows),),
        assumed=(
            Assumed(
                "tpot",
                f"{tpot_s * 1e3:g} ms in three stages",
                "Step-3's target" if tpot_s == 0.05 else "given",
            ),
            Assumed("weights", weight_dtype, "8-bit weights, tokens 8 bit out and 16 bit back"),
            Assumed("fan-out", f"{fanout:g}", "each token crosses the busier end so many times"),
            *(() if net is not None else _net_assumptions(devices, rule)),
            *device_assumptions(devices, prices=False),
            *model_assumptions(mixtures),
        ),
        notes=tuple(notes),
        formulas=("moe.density", "moe.batch"),
        facts=single | {"rows": plain},
    )


def _experts(model: ModelShape) -> FfnShape:
    if model.moe is None:
        raise RequestError(f"model: {model.name} has no experts, so there is no density", param="model")
    return model.moe


def _net_assumptions(devices: Sequence[HardwareSpec], rule: Convention) -> tuple[Assumed, ...]:
    return tuple(
        Assumed(
            f"{d.name}.net",
            f"{scaled(server_net(d, rule), 'B/s')} a server of {d.packages_per_node}",
            "NIC peak" if rule is PUBLISHED else "NIC peak times its attained share",
        )
        for d in devices
    )


def _verdict(rows: Sequence[DensityRow]) -> str:
    if len(rows) == 1:
        row = rows[0]
        if row.fits:
            return (
                f"{row.model} activates {row.density:.4f} of its experts' width and {row.hardware} needs at least "
                f"{row.min_density:.4f}: experts can be compute bound with {row.moe_batch:,.0f} tokens a micro-batch."
            )
        return (
            f"{row.model} is network bound on {row.hardware}: its density {row.density:.4f} is below "
            f"{row.min_density:.4f}, so experts reach {row.ffn_utilisation:.0%} of peak at most. "
            f"{row.num_experts_needed} experts a token instead of {row.num_experts_active} would fit."
        )
    bad = [row for row in rows if not row.fits]
    if not bad:
        return "Every model is dense enough for every hardware here."
    names = ", ".join(f"{row.model} on {row.hardware}" for row in bad[:4])
    more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
    return f"Network bound: {names}{more}. The others can be compute bound."


def _remedy(row: DensityRow) -> str:
    return (
        f"{row.model} on {row.hardware}: {row.num_experts_needed} active experts, or "
        f"{scaled(row.net_needed_bytes_per_s, 'B/s')} of network a server instead of "
        f"{scaled(row.net_bytes_per_s, 'B/s')}, would lift the network bound"
    )


def _table(rows: Sequence[dict]) -> Table:
    return Table(
        title="Density: what the model has, what the hardware asks",
        columns=(
            Column("model", "model"),
            Column("hardware", "hardware"),
            Column("density", "density", "number"),
            Column("min_density", "at least", "number"),
            Column("fits", "fits", "yes"),
            Column("num_experts_active", "experts now", "count"),
            Column("num_experts_needed", "needed", "count"),
            Column("moe_batch", "B_MoE, tokens", "count"),
            Column("net_needed_bytes_per_s", "network needed", "rate"),
            Column("ffn_utilisation", "peak reached", "percent"),
        ),
        rows=tuple(rows),
    )


def _chart(rows: Sequence[DensityRow]) -> Lines:
    """Left of a model's point the hardware asks less than it has; every hardware is a vertical line."""
    models = list(dict.fromkeys(row.model for row in rows))
    by_hardware = {row.hardware: row.hardware_term for row in rows}
    low = min([*by_hardware.values(), *(row.model_term for row in rows)]) / 2
    high = max([*by_hardware.values(), *(row.model_term for row in rows)]) * 3
    first = {row.model: row for row in reversed(rows)}
    return Lines(
        title="Above the line experts can be compute bound, below it the network sets the pace",
        x_label="FLOPS / (Net BW beta) of the hardware",
        y_label="S / (H L) of the model",
        series=(
            Series("limit", (low, high), (low, high)),
            *(
                Series(
                    name,
                    tuple(sorted(by_hardware.values())),
                    (first[name].model_term,) * len(by_hardware),
                    points=True,
                )
                for name in models
            ),
        ),
        marks=tuple(Mark(name, x=value) for name, value in by_hardware.items()),
        log_x=True,
        log_y=True,
    )
