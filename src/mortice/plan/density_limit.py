"""How sparse a mixture of experts may be before the network, not the arithmetic, sets its speed.

Step-3 (arXiv 2507.19427), sections 5.3 to 5.5, in the general form: w bytes a weight, bytes of each leg, fan-out.
"""

import math

import msgspec

from mortice.specs.errors import RequestError

PRINTED_STAGE_S = 1.5 * 0.0111  # the paper rounds beta = 2/3 of the stage to 11.1 ms


class DensityTerms(msgspec.Struct, frozen=True, kw_only=True):
    """Every term of the limit. Defaults are the paper's: 8-bit weights, 8-bit out and 16-bit back, no fan-out."""

    hidden_size: int
    num_layers: int
    flops_per_byte: float  # R: peak FLOP/s over memory bytes/s of one card
    net: float  # bytes a second of one server's NICs, one direction
    stage_s: float = 0.05 / 3  # time of the communication stage over all layers; TPOT / 3
    weight_bytes: float = 1.0
    dispatch_bytes: float = 1.0
    combine_bytes: float = 2.0
    fanout: float = 1.0  # times a token crosses the busier end of the link

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise RequestError(f"{name} must be above 0, not {value:g}", param=name)

    @property
    def dense_batch(self) -> float:
        """B_dense = R w / 2: tokens that make one weight matrix compute bound."""
        return self.flops_per_byte * self.weight_bytes / 2

    def moe_batch(self, density: float) -> float:
        """B_MoE = B_dense / S: tokens so that every expert sees B_dense of them."""
        return self.dense_batch / density

    def wire_s(self, tokens: float) -> float:
        """Seconds that `tokens` of one micro-batch need on the link in one layer, both legs."""
        return (self.dispatch_bytes + self.combine_bytes) * self.fanout * self.hidden_size * tokens / self.net

    @property
    def layer_budget_s(self) -> float:
        return self.stage_s / self.num_layers

    @property
    def min_density(self) -> float:
        """S >= (b_d + b_c) f w H R L / (2 Net T_stage)."""
        return self.wire_s(self.dense_batch) / self.layer_budget_s

    @property
    def model_term(self) -> float:
        """Right-hand side of S / (H L) >= R / (Net beta), beta = 2 T_stage / ((b_d + b_c) f w)."""
        return self.min_density / (self.hidden_size * self.num_layers)

    def net_needed(self, density: float) -> float:
        """Bytes a second that would let a model of this density stay compute bound."""
        return self.net * self.min_density / density


def density(num_experts: int, top_k: int, num_shared: int = 0) -> float:
    """S = (k + shared) / (E + shared); shared experts counted in units of a routed expert."""
    if not 1 <= top_k <= num_experts:
        raise RequestError(f"top_k must be 1 to {num_experts}, not {top_k}", param="top_k")
    return (top_k + num_shared) / (num_experts + num_shared)


def experts_needed(min_density: float, num_experts: int, num_shared: int = 0) -> int:
    """Routed experts a token would have to visit: S_min (E + shared) - shared, rounded up.

    The paper says 14 for DeepSeek-V3 on H800 (13.9 before rounding).
    """
    return max(1, math.ceil(min_density * (num_experts + num_shared) - num_shared - 1e-9))
