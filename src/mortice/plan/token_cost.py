"""USD of a token by phase and hardware: at the roofline as Step-3 counts it, or at the pace of kernels."""

from collections.abc import Sequence

import msgspec

from mortice.cost import (
    Convention,
    Formats,
    Kernels,
    Layout,
    Speculation,
    Step,
    attention_flops,
    attention_usd_per_token,
    decode_step,
    ffn_usd_per_token,
    kv_read_bytes,
    prefill_flops,
    prefill_step,
    training_usd_per_token,
    unit_cost,
)
from mortice.plan.measured import MODELLED, Measured
from mortice.plan.placement import formats_for
from mortice.specs.errors import RequestError
from mortice.specs.hardware import HardwareSpec
from mortice.specs.shape import ModelShape

NO_DRAFTS = Speculation()
MANY = 1 << 20  # sequences of a batch at which launches and weights no longer show


class TokenCost(msgspec.Struct, frozen=True, kw_only=True):
    """USD per million tokens on one kind of hardware: decoded (attention and FFN), read in prefill, trained on."""

    model: str
    hardware: str
    context: int
    attention_usd_per_mtok: float
    ffn_usd_per_mtok: float
    prefill_usd_per_mtok: float  # mean over a prompt of `context` tokens
    training_usd_per_mtok: float  # forward and backward on sequences of `context` tokens
    bound: str  # what core attention waits for when decoding: arithmetic | memory
    price_estimated: bool

    @property
    def usd_per_mtok(self) -> float:
        """Of a decoded token."""
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
    attention: str = "bf16",
    measured: Measured = MODELLED,
) -> TokenCost:
    """Step-3's formulas (section 4), or with `rule.kernel_shares` what kernels take for them: tiles, their share of peak
    and bandwidth, attention in `attention`, router, head and norms; measured where measured. Either way at a batch so large
    that weights and launches do not show and with communication hidden: a lower bound, which `plan afd` and `plan compare`
    lift to whole instances."""
    if rule.kernel_shares:
        return _of_kernels(model, device, context, rule, drafts, kv_dtype, attention, measured)
    return _at_roofline(model, device, context, rule, drafts, kv_dtype)


def _at_roofline(
    model: ModelShape,
    device: HardwareSpec,
    context: int,
    rule: Convention,
    drafts: Speculation,
    kv_dtype: str,
) -> TokenCost:
    unit = unit_cost(device)
    rows = device.tile_rows if rule.pad_tiles else 1
    attention = attention_usd_per_token(model, unit, context, rule, drafts, kv_dtype, rows)
    q_len = drafts.drafted + 1
    arithmetic = float(attention_flops(model, context, rule, rows, q_len)) / drafts.accepted * unit.flop
    memory = float(kv_read_bytes(model, context, kv_dtype, rule)) * unit.byte * drafts.byte_factor
    prompt = prefill_flops(model, context, 0.0, rule)
    return TokenCost(
        model=model.name,
        hardware=device.name,
        context=context,
        attention_usd_per_mtok=1e6 * float(attention),
        ffn_usd_per_mtok=1e6 * ffn_usd_per_token(model, unit, drafts),
        prefill_usd_per_mtok=1e6 * float(prompt["gemm"] + prompt["attention"]) / context * unit.flop,
        training_usd_per_mtok=1e6 * float(training_usd_per_token(model, unit, context, rule)),
        bound="arithmetic" if arithmetic >= memory else "memory",
        price_estimated=_estimated(device),
    )


def _of_kernels(
    model: ModelShape,
    device: HardwareSpec,
    context: int,
    rule: Convention,
    drafts: Speculation,
    kv_dtype: str,
    attention: str,
    measured: Measured,
) -> TokenCost:
    formats = formats_for(device, None, kv_dtype, attention)
    step = large_step(model, device, context, drafts, formats, measured)
    usd = 1e6 * device.usd_per_second
    kernels = measured.kernels(device)
    prompt, trained = (
        prefill_step(model, kernels, Layout(), context, batch=MANY, formats=each).total_s / (MANY * context)
        for each in (formats, Formats())
    )
    ffn = float(step.ffn_s) / MANY / drafts.accepted
    whole = float(step.total_s) / MANY / drafts.accepted
    return TokenCost(
        model=model.name,
        hardware=device.name,
        context=context,
        attention_usd_per_mtok=usd * (whole - ffn),
        ffn_usd_per_mtok=usd * ffn,
        prefill_usd_per_mtok=usd * float(prompt),
        training_usd_per_mtok=usd * 3 * float(trained),
        bound=_waits_for(model, kernels, context, rule, drafts, formats),
        price_estimated=_estimated(device),
    )


def large_step(
    model: ModelShape,
    device: HardwareSpec,
    context: int,
    drafts: Speculation = NO_DRAFTS,
    formats: Formats | None = None,
    measured: Measured = MODELLED,
) -> Step:
    """One decode step of `MANY` sequences on one package that is as large as need be."""
    return decode_step(
        model,
        measured.kernels(device),
        Layout(),
        MANY,
        context,
        formats=formats or formats_for(device),
        speculation=drafts,
    )


def _waits_for(
    model: ModelShape,
    kernels: Kernels,
    context: int,
    rule: Convention,
    drafts: Speculation,
    formats: Formats,
) -> str:
    """What core attention of the commonest kind of layer waits for."""
    device, shares = kernels.hardware, kernels.shares
    family = max(model.groups, key=lambda group: group.count).attention.family
    flops = float(attention_flops(model, context, rule, device.tile_rows, drafts.drafted + 1))
    arithmetic = flops / (device.peak(formats.attention) * shares.attention_compute[family])
    moved = float(kv_read_bytes(model, context, formats.kv, rule))
    memory = moved / (device.memory_bytes_per_s * shares.attention_memory)
    return "arithmetic" if arithmetic >= memory else "memory"


def _estimated(device: HardwareSpec) -> bool:
    return device.price is not None and device.price.status == "estimate"


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
