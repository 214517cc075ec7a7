"""FastAFD's prediction (Hao AI Lab, July 2026): what cutting the experts off gains on one rack-scale domain."""

import math

import msgspec

from mortice.specs.errors import RequestError


class StepShares(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of a colocated decode step: attention core, dense products, experts (with their exchange)."""

    attention: float
    dense: float
    experts: float

    def __post_init__(self) -> None:
        total = self.attention + self.dense + self.experts
        if min(self.attention, self.dense, self.experts) < 0 or not math.isclose(total, 1, abs_tol=0.02):
            raise RequestError(f"shares must be 0 or more and add up to 1, not {total:g}", param="shares")


def speedup(
    shares: StepShares,
    *,
    num_attention: int,
    num_ffn: int = 1,
    batch_ratio: float = 1.5,
    micro_batches: int = 2,
) -> float:
    """Throughput a GPU with AFD over without: (B_AFD / B_base) (T_base / T_AFD) M / (M + N).

    T_AFD = (B_AFD / B_base) T_attention + m T_dense, experts hidden behind attention; the dense products are
    weight bound, so each micro-batch pays them whole. `batch_ratio`: room that the freed expert weights give to KV.
    Valid while T_experts <= T_attention.
    """
    step = batch_ratio * shares.attention + micro_batches * shares.dense
    return batch_ratio / step * num_attention / (num_attention + num_ffn)
