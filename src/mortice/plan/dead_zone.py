"""Where attention-FFN disaggregation cannot feed its experts, whatever the batch.

AFD-challenges, arXiv 2602.09721.
"""

import math

import msgspec

from mortice.specs.errors import RequestError

NUM_OVERLAPPED = 3  # micro-batches that the paper assumes


def stage_time_s(
    *,
    slo_s: float,
    num_layers: int,
    accepted: float = 1.7,
    fixed_s: float = 0.015,
    overlapped: int = NUM_OVERLAPPED,
) -> float:
    """t_B of SLO * L_accept = t_g + N_layers * N_BO * t_B: seconds a stage may take in one layer.

    `accepted`: tokens a step with speculation; `fixed_s`: sampling and everything outside the layers.
    """
    left = slo_s * accepted - fixed_s
    if left <= 0:
        raise RequestError(
            f"slo_s: {slo_s * 1e3:g} ms x {accepted:g} is used up by {fixed_s * 1e3:g} ms outside the layers; "
            f"nearest feasible is above {fixed_s / accepted * 1e3:.1f} ms",
            param="slo_s",
        )
    return left / (num_layers * overlapped)


def ffn_intensity(*, tokens_per_rank: float, num_experts: int, num_ffn: int, gpus_per_ffn: int) -> float:
    """I = 2 B_rank / ceil(E / (N_F g)), FLOP a weight byte at 8 bit."""
    return 2 * tokens_per_rank / math.ceil(num_experts / (num_ffn * gpus_per_ffn))


def tokens_per_rank(*, scale_out_tokens: float, scale_up_tokens: float, top_k: int, num_ffn: int) -> float:
    """B_rank = min(B_out max(1, k / N_F), B_up): a token that crosses scale-out once serves about k / N_F experts
    of that node, until the node's scale-up bandwidth caps it."""
    return min(scale_out_tokens * max(1.0, top_k / num_ffn), scale_up_tokens)


class DeadZone(msgspec.Struct, frozen=True, kw_only=True):
    """The ceiling on the hardware FLOP utilisation of experts."""

    hfu: float
    batch_or_nodes_help: (
        bool  # False: scale-up bandwidth is the cap, neither more F nodes nor a larger batch helps
    )


def max_hfu(expert_size: int, scale_up: float, peak_flops: float) -> float:
    """HFU = 2 I BW_up / FLOPS: 6 H I FLOP against 3 H bytes a token and expert, capped at 1.

    `scale_up`: attainable bytes a second of one GPU inside its node (0.8 of peak in the paper); `expert_size`: I,
    the hidden width of one expert.
    """
    return min(1.0, 2 * expert_size * scale_up / peak_flops)


def dead_zone(
    *,
    expert_size: int,
    scale_out: float,
    scale_up: float,
    peak_flops: float,
    top_k: int,
    num_ffn: int,
) -> DeadZone:
    """HFU ceiling with both networks: scale-out feeds k / N_F experts a crossing until scale-up caps it."""
    fed = min(scale_out * max(1.0, top_k / num_ffn), scale_up)
    return DeadZone(
        hfu=max_hfu(expert_size, fed, peak_flops),
        batch_or_nodes_help=fed < scale_up,
    )


def balanced(attention_s: float, ffn_s: float, link_s: float, stage_s: float) -> dict[str, bool]:
    """The paper's feasibility conditions for three stages in rotation."""
    return {
        "within_stage": max(attention_s, ffn_s, link_s) <= stage_s,
        "attention_hides_rest": 2 * attention_s >= ffn_s + link_s,
        "ffn_hides_rest": 2 * ffn_s >= attention_s + link_s,
    }


def imbalance_penalty(attention_over_ffn: float, imbalance: float) -> float:
    """alpha_EP = (lambda + 1) / (lambda + 1 / sigma): what an expert imbalance sigma >= 1 costs expert parallelism,
    whose attention share lambda = t_a / t_f hides part of it; AFD with data-parallel attention pays sigma in full."""
    if imbalance < 1:
        raise RequestError(
            f"imbalance is max over mean load, at least 1, not {imbalance:g}", param="imbalance"
        )
    return (attention_over_ffn + 1) / (attention_over_ffn + 1 / imbalance)
