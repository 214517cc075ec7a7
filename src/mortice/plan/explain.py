"""`plan explain`: any number back to its formula, its inputs and its source."""

from mortice.cost import (
    HONEST,
    Convention,
    attention_flops,
    ffn_flops,
    kv_read_bytes,
    linear_flops,
    unit_cost,
)
from mortice.plan.answer import Answer, Assumed, Column, Table
from mortice.plan.density import density_row, terms
from mortice.plan.formulas import FORMULAS, Formula, formula
from mortice.plan.inputs import device_assumptions
from mortice.plan.published import names, published_answer
from mortice.plan.token_cost import MANY, large_step, token_cost
from mortice.plan.words import significant
from mortice.specs.errors import NotFound, RequestError
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import ModelShape


def explain_question(
    name: str | None,
    model: ModelShape | None = None,
    device: HardwareSpec | None = None,
    context: int = 8192,
    rule: Convention | None = None,
) -> Answer:
    """A published table cell by cell, a formula with its source, or, with a model and hardware, its worked numbers.

    Without a name: everything that can be explained. Raises NotFound with near names.
    """
    if name is None:
        return _index()
    if name in names():
        return published_answer(name)
    try:
        entry = formula(name)
    except NotFound as error:
        if name.startswith("step3"):
            raise NotFound(
                f"explain knows no {name!r}; published are {', '.join(names())}", param="name"
            ) from error
        raise
    if model is None and device is None:
        return _entry(entry, (), ())
    if model is None or device is None or rule is None:
        raise RequestError("worked numbers need both --model and --hardware", param="model")
    return _entry(entry, _worked(entry, model, device, context, rule), device_assumptions([device]))


def _index() -> Answer:
    rows = [{"name": f.name, "title": f.title, "source": f.source} for f in FORMULAS]
    rows += [{"name": n, "title": "published table, cell by cell", "source": "Step-3"} for n in names()]
    table = Table(
        title="What can be explained",
        columns=(Column("name", "name"), Column("title", "title"), Column("source", "source")),
        rows=tuple(rows),
    )
    return Answer(
        verb="explain",
        title="Formulas and published tables",
        verdict="",
        tables=(table,),
        facts={"rows": rows},
    )


def _entry(entry: Formula, worked: tuple[dict, ...], assumed: tuple[Assumed, ...]) -> Answer:
    about = Table(
        title=entry.title,
        columns=(Column("what", ""), Column("text", "")),
        rows=(
            {"what": "formula", "text": entry.formula},
            *({"what": symbol, "text": meaning} for symbol, meaning in entry.inputs.items()),
            {"what": "source", "text": entry.source},
            {"what": "holds for", "text": entry.holds},
            {"what": "code", "text": entry.code},
        ),
    )
    tables: tuple[Table, ...] = (about,)
    if worked:
        columns = (Column("quantity", "quantity"), Column("value", "value"), Column("from", "from"))
        tables += (Table(title="Worked", columns=columns, rows=worked),)
    facts = {
        "name": entry.name,
        "formula": entry.formula,
        "inputs": entry.inputs,
        "source": entry.source,
        "holds": entry.holds,
        "code": entry.code,
        "worked": list(worked),
    }
    return Answer(verb="explain", title=entry.name, verdict="", tables=tables, assumed=assumed, facts=facts)


def _worked(
    entry: Formula, model: ModelShape, device: HardwareSpec, context: int, rule: Convention
) -> tuple[dict, ...]:
    """The numbers of this model on this hardware behind the formula, each with where it is from."""
    if entry.name.startswith("moe."):
        return _worked_density(model, device, rule)
    if entry.name.startswith("cost.") or entry.name.startswith("roofline."):
        return _worked_cost(model, device, context, rule)
    raise RequestError(
        f"{entry.name} has no worked numbers for one model and hardware; `mortice plan afd`, `ep`, `kv` or `supernode` "
        "print theirs",
        param="name",
    )


def _rows(*items: tuple[str, float, str, str]) -> tuple[dict, ...]:
    return tuple(
        {
            "quantity": name,
            "value": f"{significant(value) if 1e-3 <= abs(value) < 1e6 else f'{value:.4g}'} {unit}".strip(),
            "number": value,
            "from": origin,
        }
        for name, value, unit, origin in items
    )


def _worked_kernels(model: ModelShape, device: HardwareSpec, context: int) -> tuple[dict, ...]:
    """The honest price part by part: seconds of kernels in a large batch times the price of a second."""
    step, usd = large_step(model, device, context), device.usd_per_second
    cost = token_cost(model, device, context, HONEST)
    parts = [(name, float(seconds) / MANY) for name, seconds in step.parts.items()]
    return _rows(
        ("price", 3600 * usd, "USD/h", device.price.source if device.price else ""),
        *(
            (name, 1e6 * seconds * usd, "USD/1M", f"{seconds * 1e6:.3g} us a token of package time")
            for name, seconds in parts
            if seconds > 0
        ),
        ("attention", cost.attention_usd_per_mtok, "USD/1M", "all parts but ffn"),
        ("FFN", cost.ffn_usd_per_mtok, "USD/1M", "parts of ffn"),
    )


def _worked_cost(model: ModelShape, device: HardwareSpec, context: int, rule: Convention) -> tuple[dict, ...]:
    if rule.kernel_shares:
        return _worked_kernels(model, device, context)
    unit, rows = unit_cost(device), 1
    price = device.price
    cost = token_cost(model, device, context, rule)
    flops, kv = (
        float(attention_flops(model, context, rule, rows)),
        float(kv_read_bytes(model, context, "fp8", rule)),
    )
    said = f"{price.source} ({price.status})" if price else ""
    return _rows(
        ("price", price.usd_per_hour if price else 0.0, "USD/h", said),
        (f"peak {unit.dtype}", device.peak(unit.dtype), "FLOP/s", device.source),
        ("bandwidth", device.memory_bytes_per_s, "B/s", device.source),
        ("U_flop", unit.flop, "USD/FLOP", "price / 3600 / peak"),
        ("U_byte", unit.byte, "USD/B", "price / 3600 / bandwidth"),
        ("FLOP_attn", flops, "FLOP", f"{model.name} at {context} tokens, {rule.name} convention"),
        ("BYTES_kv", kv, "B", "8-bit KV of all layers"),
        ("intensity", flops / kv, "FLOP/B", "FLOP_attn / BYTES_kv"),
        ("ridge", device.ridge(unit.dtype), "FLOP/B", "peak / bandwidth"),
        ("FLOP_linear", linear_flops(model, rule), "FLOP", "attention projections of all layers"),
        ("FLOP_ffn", ffn_flops(model), "FLOP", "chosen, shared and dense experts"),
        ("arithmetic", 1e6 * flops * unit.flop, "USD/1M", "FLOP_attn x U_flop"),
        ("memory", 1e6 * kv * unit.byte, "USD/1M", "BYTES_kv x U_byte"),
        (
            "attention",
            cost.attention_usd_per_mtok,
            "USD/1M",
            f"the larger ({cost.bound}) + FLOP_linear x U_flop",
        ),
        ("FFN", cost.ffn_usd_per_mtok, "USD/1M", "FLOP_ffn x U_flop"),
    )


def _worked_density(model: ModelShape, device: HardwareSpec, rule: Convention) -> tuple[dict, ...]:
    limit = terms(model, device, rule)
    row = density_row(model, device, limit)
    return _rows(
        ("H", limit.hidden_size, "", "config"),
        ("L", limit.num_layers, "", "config"),
        ("R", limit.flops_per_byte, "FLOP/B", "peak / bandwidth of one card"),
        ("Net", limit.net, "B/s", "NICs of one server"),
        ("T_stage", limit.stage_s, "s", "TPOT / 3"),
        ("B_dense", limit.dense_batch, "tokens", "R w / 2"),
        ("S", row.density, "", "(k + shared) / (E + shared)"),
        ("B_MoE", row.moe_batch, "tokens", "B_dense / S"),
        ("S_min", row.min_density, "", "(b_d + b_c) f w H R L / (2 Net T_stage)"),
        ("experts needed", row.num_experts_needed, "", "S_min (E + shared) - shared, rounded up"),
    )
