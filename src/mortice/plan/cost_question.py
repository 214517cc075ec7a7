"""`plan cost`: USD of a token by phase and hardware, and whether two kinds beat one."""

from collections.abc import Sequence

import msgspec

from mortice.cost import PUBLISHED, Convention, Speculation
from mortice.plan.answer import Answer, Assumed, Bars, Column, Table
from mortice.plan.inputs import device_assumptions, model_assumptions, require_prices
from mortice.plan.measured import MODELLED, Measured
from mortice.plan.token_cost import NO_DRAFTS, Placement, TokenCost, best_placement, drafts_pay, token_cost
from mortice.plan.words import tokens as token_words
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import ModelShape


def cost_question(
    shapes: Sequence[ModelShape],
    devices: Sequence[HardwareSpec],
    context_lens: Sequence[int],
    rule: Convention,
    *,
    drafts: Speculation = NO_DRAFTS,
    kv_dtype: str = "fp8",
    attention: str = "bf16",
    measured: Measured = MODELLED,
) -> Answer:
    """The table of every model on every hardware, and the best placement of each."""
    unpriced = [device.name for device in devices if device.price is None]
    if len(unpriced) < len(devices):
        devices = [device for device in devices if device.price is not None]
    require_prices(devices)
    costs = [
        token_cost(m, d, c, rule, drafts=drafts, kv_dtype=kv_dtype, attention=attention, measured=measured)
        for c in context_lens
        for m in shapes
        for d in devices
    ]
    groups: dict[tuple[str, int], list[TokenCost]] = {}
    for cost in costs:
        groups.setdefault((cost.model, cost.context), []).append(cost)
    placements = [best_placement(group) for group in groups.values()]
    rows = [msgspec.to_builtins(c) | {"usd_per_mtok": c.usd_per_mtok} for c in costs]
    notes = _draft_notes(shapes, devices, context_lens, rule, drafts)
    if unpriced:
        notes = (f"left out, because no price is known: {', '.join(unpriced)}; give --price NAME=USD", *notes)
    return Answer(
        verb="cost",
        title=f"Cost of a token, {rule.name} convention",
        verdict=_verdict(placements, len(devices)),
        tables=(_cost_table(rows), _placement_table(placements)),
        charts=_charts(costs, placements),
        assumed=(
            Assumed(
                "kv dtype", kv_dtype, "storage of the published tables" if rule is PUBLISHED else "8-bit KV"
            ),
            *_counted(rule, attention),
            *(measured.assumed(devices) if rule.kernel_shares else ()),
            *device_assumptions(devices),
            *model_assumptions(shapes),
        ),
        notes=(*(measured.notes(devices) if rule.kernel_shares else ()), *notes),
        formulas=(
            *(("cost.kernels",) if rule.kernel_shares else ("cost.attention", "cost.ffn", "cost.unit")),
            "cost.prefill",
            "cost.training",
            "cost.afd",
        ),
        facts={"costs": rows, "placements": [_placement_row(p) for p in placements]},
    )


def _counted(rule: Convention, attention: str) -> tuple[Assumed, ...]:
    """What the convention takes for granted."""
    batch = Assumed(
        "batch",
        "so large that weights and launches do not show, links hidden",
        "`plan compare` has real ones",
    )
    if not rule.kernel_shares:
        return (batch, Assumed("arithmetic", "fp8 where the card has it, else bf16", "Step-3, table 4"))
    return (
        batch,
        Assumed(
            "arithmetic", f"weights in 8 bit where the card has it, attention in {attention}", "as kernels do"
        ),
        Assumed("training", "three times a forward pass in bf16", "backward is twice the forward"),
    )


def _draft_notes(
    shapes: Sequence[ModelShape],
    devices: Sequence[HardwareSpec],
    context_lens: Sequence[int],
    rule: Convention,
    drafts: Speculation,
) -> tuple[str, ...]:
    if not drafts.drafted:
        return ()
    notes = []
    for model in shapes:
        for device in devices:
            pays, factor = drafts_pay(model, device, max(context_lens), rule, drafts)
            if not pays:
                notes.append(
                    f"drafting loses for {model.name} on {device.name}: a useful token costs {factor:.2f} times as "
                    f"much with {drafts.drafted} drafted and {drafts.accepted:g} kept; leave it off"
                )
    return tuple(notes)


def _verdict(placements: Sequence[Placement], num_devices: int) -> str:
    if num_devices < 2:
        return "One kind of hardware was given, so there is nothing to pair."
    won = [p for p in placements if p.saving > 0.005]
    if not won:
        return "No pair of different hardware beats the best single kind here: attention and experts want the same one."
    best = max(won, key=lambda p: p.saving)
    return (
        f"Two kinds beat one for {len(won)} of {len(placements)} rows before links and whole instances are paid. "
        f"Most for {best.model} at {token_words(best.context)}: attention on {best.attention.hardware}, experts on "
        f"{best.ffn.hardware}, {best.afd_usd_per_mtok:.3f} against {best.homogeneous.usd_per_mtok:.3f} USD a million "
        f"on {best.homogeneous.hardware} ({best.saving:.0%} less)."
    )


def _cost_table(rows: Sequence[dict]) -> Table:
    return Table(
        title="USD per million tokens",
        columns=(
            Column("model", "model"),
            Column("hardware", "hardware"),
            Column("context", "context", "count"),
            Column("attention_usd_per_mtok", "decode: attention", "usd"),
            Column("ffn_usd_per_mtok", "FFN", "usd"),
            Column("usd_per_mtok", "together", "usd"),
            Column("prefill_usd_per_mtok", "prefill", "usd"),
            Column("training_usd_per_mtok", "training", "usd"),
            Column("bound", "attention waits for"),
        ),
        rows=tuple(rows),
    )


def _placement_row(p: Placement) -> dict:
    return {
        "model": p.model,
        "context": p.context,
        "attention_hardware": p.attention.hardware,
        "ffn_hardware": p.ffn.hardware,
        "afd_usd_per_mtok": p.afd_usd_per_mtok,
        "homogeneous_hardware": p.homogeneous.hardware,
        "homogeneous_usd_per_mtok": p.homogeneous.usd_per_mtok,
        "saving": p.saving,
    }


def _placement_table(placements: Sequence[Placement]) -> Table:
    return Table(
        title="Best pair against best single kind",
        columns=(
            Column("model", "model"),
            Column("context", "context", "count"),
            Column("attention_hardware", "attention on"),
            Column("ffn_hardware", "FFN on"),
            Column("afd_usd_per_mtok", "pair", "usd"),
            Column("homogeneous_hardware", "one kind"),
            Column("homogeneous_usd_per_mtok", "alone", "usd"),
            Column("saving", "pair saves", "percent"),
        ),
        rows=tuple(_placement_row(p) for p in placements),
    )


def _charts(costs: Sequence[TokenCost], placements: Sequence[Placement]) -> tuple[Bars, ...]:
    charts = []
    for context in dict.fromkeys(c.context for c in costs):
        of_context = [c for c in costs if c.context == context]
        if len({c.model for c in of_context}) == 1:
            shown = sorted(of_context, key=lambda c: c.usd_per_mtok)
            labels = tuple(c.hardware for c in shown)
            title = f"USD per million tokens at {token_words(context)} context, {shown[0].model}"
            halves = ([c.attention_usd_per_mtok for c in shown], [c.ffn_usd_per_mtok for c in shown])
        else:
            best = [p for p in placements if p.context == context]
            labels = tuple(f"{p.model}  ({p.attention.hardware} / {p.ffn.hardware})" for p in best)
            title = f"Best placement at {token_words(context)} context, attention hardware / FFN hardware"
            halves = (
                [p.attention.attention_usd_per_mtok for p in best],
                [p.ffn.ffn_usd_per_mtok for p in best],
            )
        charts.append(
            Bars(
                title=title,
                x_label="USD per million decoded tokens",
                labels=labels,
                parts=(("attention", tuple(halves[0])), ("FFN", tuple(halves[1]))),
            )
        )
    return tuple(charts)
