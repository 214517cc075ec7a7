"""`plan design`: the co-design direction itself. Given hardware and a floor on quality, which model shape is cheapest?

Searches attention (kind, heads, head size, KV heads) and experts (count, chosen, width) on a fixed frame of layers and
hidden size. The quality proxies are those of the MFA paper and of Step-3: effective rank of attention (heads x head
size) and active parameters; they rank shapes, they do not promise quality.
"""

from collections.abc import Iterator, Sequence
from itertools import product

import msgspec

from mortice.cost import (
    HONEST,
    active_parameters,
    arithmetic_intensity,
    effective_rank,
    kv_cache_bytes,
    parameters,
)
from mortice.cost.published import cost_dtype
from mortice.plan.answer import Answer, Assumed, Column, Lines, Mark, Series, Table
from mortice.plan.density import terms
from mortice.plan.inputs import device_assumptions, require_prices
from mortice.plan.token_cost import token_cost
from mortice.plan.words import tokens as token_words
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import AttentionShape, FfnShape, LayerGroup, ModelShape

EXPERTS = ((48, 3), (64, 4), (64, 6), (96, 4), (128, 4), (128, 8), (160, 6), (256, 8), (384, 8))
# The roofline with whole tiles: shapes are compared for what the hardware could give them, not for today's kernels.
ROOFLINE = msgspec.structs.replace(HONEST, kernel_shares=False)
GRANULE = 256  # an expert's width is a multiple of it


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """What is held fixed, and the floors that a design must reach."""

    num_layers: int = 61
    hidden_size: int = 7168
    vocab_size: int = 128_000
    min_rank: int = 8192
    active_params: float = 38e9  # met within 10 %
    context: int = 8192
    tpot_s: float = 0.05


class Design(msgspec.Struct, frozen=True, kw_only=True):
    """One shape with its price on a pair of hardware."""

    attention: str
    effective_rank: int
    experts: str
    active_params: float
    total_params: float
    intensity: float  # in tiles of the attention hardware, 8-bit KV
    ridge_share: float  # intensity over the ridge of the attention hardware
    density: float
    min_density: float
    kv_bytes_per_token: float
    attention_hardware: str
    ffn_hardware: str
    attention_usd_per_mtok: float
    ffn_usd_per_mtok: float

    @property
    def usd_per_mtok(self) -> float:
        return self.attention_usd_per_mtok + self.ffn_usd_per_mtok

    @property
    def fits(self) -> bool:
        """Dense enough for the network of the FFN hardware."""
        return self.density >= self.min_density


def attentions(frame: Frame) -> Iterator[tuple[str, AttentionShape]]:
    """Grouped, latent and factorised attention with an effective rank of at least the floor, at most twice it."""
    for heads, dim in product((32, 40, 48, 64, 96, 128), (128, 256)):
        if not frame.min_rank <= heads * dim <= 2 * frame.min_rank:
            continue
        for kv in (4, 8):
            if heads % kv == 0:
                shape = AttentionShape(num_heads=heads, num_kv_heads=kv, head_dim=dim, value_dim=dim)
                yield f"GQA {heads}/{kv} x {dim}", shape
        for rank in (1024, 1536, 2048):
            shape = AttentionShape(
                num_heads=heads, num_kv_heads=1, head_dim=dim, value_dim=dim, query_rank=rank
            )
            yield f"MFA {heads} x {dim}, query rank {rank}", shape
        if dim == 128:
            for latent in (256, 512):
                shape = AttentionShape(
                    num_heads=heads,
                    num_kv_heads=heads,
                    head_dim=192,
                    value_dim=128,
                    query_rank=1536,
                    latent_rank=latent,
                    rope_dim=64,
                )
                yield f"MLA {heads} x 128, latent {latent}", shape


def shapes(frame: Frame) -> Iterator[tuple[str, str, ModelShape]]:
    """Every attention with every mixture whose width brings active parameters to the target within 10 %."""
    for attention_name, attention in attentions(frame):
        for experts, top_k in EXPERTS:
            left = frame.active_params - frame.num_layers * attention.parameters(frame.hidden_size)
            left -= frame.vocab_size * frame.hidden_size
            width = left / (3 * frame.hidden_size * frame.num_layers * (top_k + 1))
            size = max(GRANULE, round(width / GRANULE) * GRANULE)
            ffn = FfnShape(num_experts=experts, top_k=top_k, expert_size=size, num_shared=1, shared_size=size)
            group = LayerGroup(count=frame.num_layers, attention=attention, ffn=ffn)
            model = ModelShape(
                name="design",
                family="design",
                hidden_size=frame.hidden_size,
                vocab_size=frame.vocab_size,
                max_context=frame.context,
                groups=(group,),
                order=(0,) * frame.num_layers,
                weight_dtype="fp8",
            )
            if abs(active_parameters(model) / frame.active_params - 1) <= 0.10:
                yield attention_name, f"{experts} x {size}, {top_k} + 1 active", model


def designs(
    frame: Frame, attention_hw: Sequence[HardwareSpec], ffn_hw: Sequence[HardwareSpec]
) -> list[Design]:
    """All shapes on their cheapest pair, cheapest first. Raises RequestError where the frame admits none."""
    require_prices([*attention_hw, *ffn_hw])
    if not frame.active_params > 0:
        raise RequestError(f"active must be above 0 parameters, not {frame.active_params:g}", param="active")
    found = [
        _price(frame, name, experts, model, attention_hw, ffn_hw) for name, experts, model in shapes(frame)
    ]
    if not found:
        ranks = sorted({h * d for h, d in product((32, 40, 48, 64, 96, 128), (128, 256))})
        near = min(ranks, key=lambda r: abs(r - frame.min_rank))
        raise RequestError(
            f"rank and active: no shape of {frame.num_layers} x {frame.hidden_size} has an effective rank of "
            f"{frame.min_rank} and {frame.active_params / 1e9:g} B active parameters; nearest rank that is searched is "
            f"{near}",
            param="rank",
        )
    return sorted(found, key=lambda d: d.usd_per_mtok)


def _price(
    frame: Frame,
    name: str,
    experts: str,
    model: ModelShape,
    attention_hw: Sequence[HardwareSpec],
    ffn_hw: Sequence[HardwareSpec],
) -> Design:
    costs = {d.name: token_cost(model, d, frame.context, ROOFLINE) for d in (*attention_hw, *ffn_hw)}
    a = min(attention_hw, key=lambda d: costs[d.name].attention_usd_per_mtok)
    ffn_costs = []
    for d in ffn_hw:
        limit = terms(model, d, HONEST, tpot_s=frame.tpot_s).min_density
        have = model.moe.density if model.moe else 1.0
        # Below the least density the network sets the pace: experts reach S / S_min of peak.
        ffn_costs.append((costs[d.name].ffn_usd_per_mtok / min(1.0, have / limit), limit, d))
    ffn_usd, limit, f = min(ffn_costs, key=lambda triple: triple[0])
    intensity = float(arithmetic_intensity(model, frame.context, "fp8", HONEST, a.tile_rows))
    return Design(
        attention=name,
        effective_rank=effective_rank(model),
        experts=experts,
        active_params=float(active_parameters(model)),
        total_params=float(parameters(model)),
        intensity=intensity,
        ridge_share=intensity / a.ridge(cost_dtype(a)),
        density=model.moe.density if model.moe else 1.0,
        min_density=limit,
        kv_bytes_per_token=float(kv_cache_bytes(model, frame.context, "fp8")) / frame.context,
        attention_hardware=a.name,
        ffn_hardware=f.name,
        attention_usd_per_mtok=costs[a.name].attention_usd_per_mtok,
        ffn_usd_per_mtok=ffn_usd,
    )


def design_question(
    frame: Frame, attention_hw: Sequence[HardwareSpec], ffn_hw: Sequence[HardwareSpec], shown: int = 12
) -> Answer:
    found = designs(frame, attention_hw, ffn_hw)
    best = found[0]
    families = {name: [d for d in found if d.attention.startswith(name)] for name in ("GQA", "MLA", "MFA")}
    distinct = list(
        {d.attention: d for d in reversed(found)}.values()
    )  # the cheapest of each attention stays
    rows = tuple(
        msgspec.to_builtins(d) | {"usd_per_mtok": d.usd_per_mtok, "fits": d.fits}
        for d in sorted(distinct, key=lambda d: d.usd_per_mtok)[:shown]
    )
    return Answer(
        verb="design",
        title=f"Model shapes for {', '.join(d.name for d in attention_hw)} (attention), "
        f"{', '.join(d.name for d in ffn_hw)} (experts)",
        verdict=_verdict(best, families),
        tables=(_table(rows, frame),),
        charts=(_chart(families, attention_hw),),
        assumed=(
            Assumed(
                "frame", f"{frame.num_layers} layers, hidden {frame.hidden_size}", "held fixed in the search"
            ),
            Assumed(
                "effective rank", f"{frame.min_rank} to {2 * frame.min_rank}", "quality proxy of attention"
            ),
            Assumed(
                "active parameters",
                f"{frame.active_params / 1e9:g} B within 10 %",
                "quality proxy of the FFN",
            ),
            Assumed("context", token_words(frame.context), "of the decoded token"),
            Assumed("dtypes", "8-bit weights, KV and arithmetic", "as Step-3"),
            Assumed(
                "price", "the roofline with whole tiles", "what the hardware could give, not today's kernels"
            ),
            Assumed("layers", "all alike, one shared expert", "a real stack may start with dense ones"),
            *device_assumptions([*attention_hw, *ffn_hw]),
        ),
        notes=(
            f"{len(found)} shapes priced; what the proxies do not see (training, long-range recall) they do not rank",
        ),
        formulas=("cost.attention", "cost.ffn", "moe.density", "roofline.intensity"),
        facts={"designs": rows, "num_searched": len(found)},
    )


def _verdict(best: Design, families: dict[str, list[Design]]) -> str:
    text = (
        f"Cheapest is {best.attention} with {best.experts}: {best.usd_per_mtok:.3f} USD a million tokens, intensity "
        f"{best.intensity:.0f} or {best.ridge_share:.2f} of the ridge of {best.attention_hardware}."
    )
    others = [
        f"{name} {min(f, key=lambda d: d.usd_per_mtok).usd_per_mtok:.3f}" for name, f in families.items() if f
    ]
    return text + f" Best of each kind: {', '.join(others)}."


def _table(rows: Sequence[dict], frame: Frame) -> Table:
    return Table(
        title=f"Best experts for each attention, at {token_words(frame.context)}",
        columns=(
            Column("attention", "attention"),
            Column("effective_rank", "rank", "count"),
            Column("experts", "experts"),
            Column("intensity", "FLOP/B", "number"),
            Column("ridge_share", "of ridge", "number"),
            Column("kv_bytes_per_token", "KV a token", "bytes"),
            Column("density", "density", "number"),
            Column("min_density", "at least", "number"),
            Column("attention_hardware", "attention on"),
            Column("ffn_hardware", "experts on"),
            Column("usd_per_mtok", "USD/1M", "usd"),
        ),
        rows=tuple(rows),
        best=0,
    )


def _chart(families: dict[str, list[Design]], attention_hw: Sequence[HardwareSpec]) -> Lines:
    series = tuple(
        Series(name, tuple(d.intensity for d in found), tuple(d.usd_per_mtok for d in found), points=True)
        for name, found in families.items()
        if found
    )
    marks = tuple(Mark(f"{d.name} ridge", x=d.ridge(cost_dtype(d))) for d in attention_hw)
    return Lines(
        title="Price of a token against the intensity of attention",
        x_label="FLOP a byte of KV, in tiles",
        y_label="USD per million tokens",
        series=series,
        marks=marks,
        log_x=True,
    )
