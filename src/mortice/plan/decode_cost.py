"""`plan cost`: USD of a decoded token by phase and hardware, and whether two kinds beat one."""

from collections.abc import Sequence

import msgspec

from mortice.cost import (
    PUBLISHED,
    Convention,
    Speculation,
    attention_flops,
    attention_usd_per_token,
    ffn_usd_per_token,
    kv_read_bytes,
    unit_cost,
)
from mortice.plan.answer import Answer, Assumed, Bars, Column, Table
from mortice.plan.inputs import device_assumptions, model_assumptions, require_prices
from mortice.plan.words import tokens as token_words
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import ModelShape

NO_DRAFTS = Speculation()


class TokenCost(msgspec.Struct, frozen=True, kw_only=True):
    """USD per million decoded tokens on one kind of hardware."""

    model: str
    hardware: str
    context: int
    attention_usd_per_mtok: float
    ffn_usd_per_mtok: float
    bound: str  # what core attention waits for: arithmetic | memory
    price_estimated: bool

    @property
    def usd_per_mtok(self) -> float:
        return self.attention_usd_per_mtok + self.ffn_usd_per_mtok


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """The cheapest hardware of each half against the cheapest for both."""

    model: str
    context: int
    attention: TokenCost
    ffn: TokenCost
    homogeneous: TokenCost

    @property
    def afd_usd_per_mtok(self) -> float:
        return self.attention.attention_usd_per_mtok + self.ffn.ffn_usd_per_mtok

    @property
    def saving(self) -> float:
        return 1 - self.afd_usd_per_mtok / self.homogeneous.usd_per_mtok


def token_cost(
    model: ModelShape,
    device: HardwareSpec,
    context: int,
    rule: Convention,
    *,
    drafts: Speculation = NO_DRAFTS,
    kv_dtype: str = "fp8",
) -> TokenCost:
    """Step-3's formulas, section 4. In the honest convention query rows fill whole tiles, router and head count, and
    MLA's value product is the one that is computed."""
    unit = unit_cost(device)
    rows = device.tile_rows if rule.pad_tiles else 1
    attention = attention_usd_per_token(model, unit, context, rule, drafts, kv_dtype, rows)
    arithmetic = float(attention_flops(model, context, rule, rows)) * unit.flop * drafts.flop_factor
    memory = float(kv_read_bytes(model, context, kv_dtype, rule)) * unit.byte * drafts.byte_factor
    return TokenCost(
        model=model.name,
        hardware=device.name,
        context=context,
        attention_usd_per_mtok=1e6 * float(attention),
        ffn_usd_per_mtok=1e6 * ffn_usd_per_token(model, unit, drafts),
        bound="arithmetic" if arithmetic >= memory else "memory",
        price_estimated=device.price is not None and device.price.status == "estimate",
    )


def best_placement(costs: Sequence[TokenCost]) -> Placement:
    """Of one model at one context."""
    if not costs:
        raise RequestError("hardware: nothing to compare", param="hardware")
    return Placement(
        model=costs[0].model,
        context=costs[0].context,
        attention=min(costs, key=lambda c: c.attention_usd_per_mtok),
        ffn=min(costs, key=lambda c: c.ffn_usd_per_mtok),
        homogeneous=min(costs, key=lambda c: c.usd_per_mtok),
    )


def usd_per_mtok(price_hour: float, tokens_per_s_per_gpu: float) -> float:
    """price * 1e6 / (3600 * tokens/s/GPU), as InferenceX prices a measured rate."""
    if not tokens_per_s_per_gpu > 0:
        raise RequestError("tokens_per_s must be above 0", param="tokens_per_s")
    return price_hour * 1e6 / (3600 * tokens_per_s_per_gpu)


def drafts_pay(
    model: ModelShape, device: HardwareSpec, context: int, rule: Convention, drafts: Speculation
) -> tuple[bool, float]:
    """Whether drafting lowers the cost of a useful token here, and by what factor it changes it (below 1: cheaper)."""
    plain = token_cost(model, device, context, rule).usd_per_mtok
    drafted = token_cost(model, device, context, rule, drafts=drafts).usd_per_mtok
    return drafted < plain, drafted / plain


def cost_question(
    shapes: Sequence[ModelShape],
    devices: Sequence[HardwareSpec],
    context_lens: Sequence[int],
    rule: Convention,
    *,
    drafts: Speculation = NO_DRAFTS,
    kv_dtype: str = "fp8",
) -> Answer:
    """The table of every model on every hardware, and the best placement of each."""
    require_prices(devices)
    costs = [
        token_cost(m, d, c, rule, drafts=drafts, kv_dtype=kv_dtype)
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
    return Answer(
        verb="cost",
        title=f"Cost of a decoded token, {rule.name} convention",
        verdict=_verdict(placements, len(devices)),
        tables=(_cost_table(rows), _placement_table(placements)),
        charts=_charts(costs, placements),
        assumed=(
            Assumed(
                "kv dtype", kv_dtype, "storage of the published tables" if rule is PUBLISHED else "8-bit KV"
            ),
            Assumed("arithmetic", "fp8 where the card has it, else bf16", "Step-3, table 4"),
            *device_assumptions(devices),
            *model_assumptions(shapes),
        ),
        notes=notes,
        formulas=("cost.attention", "cost.ffn", "cost.afd", "cost.unit"),
        facts={"costs": rows, "placements": [_placement_row(p) for p in placements]},
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
        title="USD per million decoded tokens",
        columns=(
            Column("model", "model"),
            Column("hardware", "hardware"),
            Column("context", "context", "count"),
            Column("attention_usd_per_mtok", "attention", "usd"),
            Column("ffn_usd_per_mtok", "FFN", "usd"),
            Column("usd_per_mtok", "together", "usd"),
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
