"""What a model costs on a device: FLOPs and bytes of every operator, seconds of a step, dollars of a token.

Knows nothing of torch, of requests or of clocks: shapes and hardware in, numbers out, NumPy arrays wherever a
batch, a context or a layout may be many.
"""

from mortice.cost.accounting import (
    active_parameters,
    arithmetic_intensity,
    attention_flops,
    effective_rank,
    ffn_flops,
    kv_cache_bytes,
    kv_read_bytes,
    linear_flops,
    parameters,
    prefill_flops,
    training_flops,
    weight_bytes,
)
from mortice.cost.conventions import HONEST, PUBLISHED, Convention, convention
from mortice.cost.dtypes import BYTES, dtype_bytes
from mortice.cost.published import (
    UnitCost,
    attention_usd_per_token,
    ffn_usd_per_token,
    published_hardware,
    training_usd_per_token,
    unit_cost,
)
from mortice.cost.speculation import Speculation

__all__ = [
    "BYTES",
    "HONEST",
    "PUBLISHED",
    "Convention",
    "Speculation",
    "UnitCost",
    "active_parameters",
    "arithmetic_intensity",
    "attention_flops",
    "attention_usd_per_token",
    "convention",
    "dtype_bytes",
    "effective_rank",
    "ffn_flops",
    "ffn_usd_per_token",
    "kv_cache_bytes",
    "kv_read_bytes",
    "linear_flops",
    "parameters",
    "prefill_flops",
    "published_hardware",
    "training_flops",
    "training_usd_per_token",
    "unit_cost",
    "weight_bytes",
]
