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
from mortice.cost.assumption import Assumption
from mortice.cost.conventions import HONEST, PUBLISHED, Convention, convention
from mortice.cost.dtypes import BYTES, dtype_bytes
from mortice.cost.kernels import Kernels
from mortice.cost.layout import (
    DeviceMemory,
    Formats,
    Layout,
    device_memory,
    layout_fits,
    max_batch,
)
from mortice.cost.links import Links
from mortice.cost.operators import Operator, operators
from mortice.cost.published import (
    UnitCost,
    attention_usd_per_token,
    ffn_usd_per_token,
    published_hardware,
    training_usd_per_token,
    unit_cost,
)
from mortice.cost.speculation import Speculation
from mortice.cost.step import Step, attention_side, decode_step, ffn_side, prefill_step, usd_per_mtok

__all__ = [
    "BYTES",
    "HONEST",
    "PUBLISHED",
    "Assumption",
    "Convention",
    "DeviceMemory",
    "Formats",
    "Kernels",
    "Layout",
    "Links",
    "Operator",
    "Speculation",
    "Step",
    "UnitCost",
    "active_parameters",
    "arithmetic_intensity",
    "attention_flops",
    "attention_side",
    "attention_usd_per_token",
    "convention",
    "decode_step",
    "device_memory",
    "dtype_bytes",
    "effective_rank",
    "ffn_flops",
    "ffn_side",
    "ffn_usd_per_token",
    "kv_cache_bytes",
    "kv_read_bytes",
    "layout_fits",
    "linear_flops",
    "max_batch",
    "operators",
    "parameters",
    "prefill_flops",
    "prefill_step",
    "published_hardware",
    "training_flops",
    "training_usd_per_token",
    "unit_cost",
    "usd_per_mtok",
    "weight_bytes",
]
