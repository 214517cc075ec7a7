"""Dollars of a decoded token as the Step-3 paper counts them (section 4): rooflines only.

    U_flop = price / peak,  U_byte = price / bandwidth        (price per second of one card)
    attention = max(core FLOP * U_flop, KV byte * U_byte) + linear FLOP * U_flop
    FFN       = FFN FLOP * U_flop

Communication is hidden, weights are amortised over the batch, linears are compute bound. Storage is 8 bit,
arithmetic FP8 where the card has it and BF16 elsewhere. Valid as a lower bound at large batch; what it leaves out is
in the honest convention (cost/step.py).
"""

import msgspec
import numpy as np

from mortice.cost.accounting import (
    Number,
    attention_flops,
    ffn_flops,
    kv_read_bytes,
    linear_flops,
    training_flops,
)
from mortice.cost.conventions import PUBLISHED, Convention
from mortice.cost.speculation import NO_SPECULATION, Speculation
from mortice.specs.catalogue import load_hardware, published_tables
from mortice.specs.hardware import HardwareSpec, Link, Price
from mortice.specs.shape import ModelShape


class UnitCost(msgspec.Struct, frozen=True, kw_only=True):
    """What one FLOP and one byte of memory traffic cost in USD."""

    flop: float
    byte: float
    dtype: str


def cost_dtype(hardware: HardwareSpec) -> str:
    """FP8 where the card computes in it, else BF16."""
    return "fp8" if "fp8" in hardware.peaks else "bf16"


def unit_cost(hardware: HardwareSpec, dtype: str | None = None) -> UnitCost:
    """Unrounded unit costs. Raises RequestError where the price or the peak is unknown."""
    dtype = dtype or cost_dtype(hardware)
    price = hardware.usd_per_second
    return UnitCost(flop=price / hardware.peak(dtype), byte=price / hardware.memory_bytes_per_s, dtype=dtype)


def published_hardware(name: str) -> HardwareSpec:
    """A catalogue entry with the figures of Step-3's Table 4 where that table has the card (H800, H20, A800, 910B):
    peaks, memory bandwidth, price and the network of its section 5.4."""
    spec = load_hardware(name)
    row = published_tables("step3")["hardware"].get(spec.name)
    if row is None:
        return spec
    dense = {"bf16": row["bf16"]} | ({"fp8": row["fp8"]} if row["fp8"] else {})
    network = Link(tier="scale_out", bytes_per_s=row["server_net"] / 8, span=0)
    return msgspec.structs.replace(
        spec,
        peaks=dense,
        memory_bytes_per_s=row["bandwidth"],
        links=(*(link for link in spec.links if link.tier != "scale_out"), network),
        price=Price(
            usd_per_hour=row["price"],
            status="estimate" if row["estimate"] else "published",
            source="Step-3 paper, Table 4",
        ),
    )


def attention_usd_per_token(
    model: ModelShape,
    cost: UnitCost,
    context: Number,
    rule: Convention = PUBLISHED,
    speculation: Speculation = NO_SPECULATION,
    kv_dtype: str = "fp8",
    tile_rows: int = 1,
) -> Number:
    """USD of attention and its projections for one useful decoded token."""
    # Drafted rows fill tiles that would be padded: they are counted before the padding, not after.
    rows = speculation.drafted + 1
    flops = attention_flops(model, context, rule, tile_rows, rows)
    arithmetic = flops * (cost.flop / speculation.accepted)
    memory = kv_read_bytes(model, context, kv_dtype, rule) * (cost.byte * speculation.byte_factor)
    linears = linear_flops(model, rule) * cost.flop * speculation.flop_factor
    longer: Number = np.maximum(arithmetic, memory)
    return longer + linears if np.ndim(context) else float(longer + linears)


def ffn_usd_per_token(model: ModelShape, cost: UnitCost, speculation: Speculation = NO_SPECULATION) -> float:
    """USD of all FFNs for one useful decoded token: every drafted token pays, accepted or not."""
    return ffn_flops(model) * cost.flop * speculation.flop_factor


def training_usd_per_token(
    model: ModelShape, cost: UnitCost, context: Number, rule: Convention = PUBLISHED
) -> Number:
    """USD of training on one token: forward and backward at the roofline (Step-3, figure 4)."""
    return training_flops(model, context, rule) * cost.flop
