"""Prefill of very long prompts: arithmetic, context parallelism (ring attention), chunk pipelines, exponentials.

Context parallelism after Meta-CP, arXiv 2411.01783; the chunk pipeline is the classic bubble with causal cost.
"""

import math

import msgspec

from mortice.specs.errors import RequestError


class PrefillWork(msgspec.Struct, frozen=True, kw_only=True):
    """FLOPs and exponentials of prefilling `tokens` new tokens behind a cached prefix."""

    gemm_flops: float
    attention_flops: float
    exponentials: float

    @property
    def flops(self) -> float:
        return self.gemm_flops + self.attention_flops

    @property
    def attention_share(self) -> float:
        return self.attention_flops / self.flops


class AttentionShape(msgspec.Struct, frozen=True, kw_only=True):
    """Full softmax attention as prefill runs it: latent attention un-absorbed (192 and 128 for DeepSeek)."""

    num_layers: int
    num_heads: int
    qk_dim: int
    value_dim: int
    num_kv_heads: int
    active_params: float  # matrix weights a token passes: GEMM FLOPs are twice that

    @property
    def flops_per_pair(self) -> float:
        return 2.0 * self.num_layers * self.num_heads * (self.qk_dim + self.value_dim)

    def work(self, tokens: float, prefix: float = 0.0) -> PrefillWork:
        """Causal pairs T Pfx + T^2 / 2; GEMM 2 P T; one exponential a head and pair."""
        pairs = tokens * prefix + tokens * tokens / 2
        return PrefillWork(
            gemm_flops=2 * self.active_params * tokens,
            attention_flops=self.flops_per_pair * pairs,
            exponentials=float(self.num_layers) * self.num_heads * pairs,
        )

    @property
    def equal_tokens(self) -> float:
        """Prompt length at which attention costs as much as all matrix products."""
        return 4 * self.active_params / self.flops_per_pair


def exponent_bound_flops(qk_dim: int, value_dim: int, exponentials_per_s: float) -> float:
    """Achieved attention FLOP/s above which the exponent unit binds: 2 (d_qk + d_v) exp/s."""
    return 2.0 * (qk_dim + value_dim) * exponentials_per_s


class RingChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Pass keys and values round the ring, or queries, and why."""

    choice: str  # "pass-kv" | "pass-q"
    reason: str
    kv_hidden: bool  # the transfer hides behind attention
    hidden_from_tokens: float  # new tokens from which it does
    new_share: float  # T / (T + prefix)
    share_limit: float  # pass-kv from this share on, refined


def ring_choice(
    *,
    new_tokens: float,
    prefix: float,
    num_ranks: int,
    num_heads: int,
    num_kv_heads: int,
    kv_element_bytes: float,
    achieved_flops: float,
    bandwidth: float,
) -> RingChoice:
    """Pass-KV when it hides (T >= N C n_kv e / (2 n_h BW)) or when T / (T + Pfx) >= 2 n_kv / n_h - 4 T BW / (N C e).

    `bandwidth` and `achieved_flops` (C) of one rank; the prefix cancels out of the first condition.
    """
    hidden_from = num_ranks * achieved_flops * num_kv_heads * kv_element_bytes / (2 * num_heads * bandwidth)
    share = new_tokens / (new_tokens + prefix)
    limit = 2 * num_kv_heads / num_heads - 4 * new_tokens * bandwidth / (
        num_ranks * achieved_flops * kv_element_bytes
    )
    hidden = new_tokens >= hidden_from
    if hidden:
        choice, reason = "pass-kv", "moving KV hides behind attention"
    elif share >= limit:
        choice, reason = "pass-kv", "new tokens are a large enough share that queries would be more bytes"
    else:
        choice, reason = "pass-q", "the prefix is so long that queries are fewer bytes than KV"
    return RingChoice(
        choice=choice,
        reason=reason,
        kv_hidden=hidden,
        hidden_from_tokens=hidden_from,
        new_share=share,
        share_limit=limit,
    )


def ring_step_bytes(
    *, new_tokens: float, prefix: float, num_ranks: int, kv_bytes_per_token_layer: float
) -> float:
    """Bytes a rank sends in each of the N - 1 steps of a layer when keys and values go round."""
    return (new_tokens + prefix) / num_ranks * kv_bytes_per_token_layer


def pipeline_bubble(num_stages: int, num_chunks: int) -> float:
    """Idle share (P - 1) / (P - 1 + M) of P stages fed M equal chunks."""
    if num_stages < 1 or num_chunks < 1:
        raise RequestError("num_stages and num_chunks must be at least 1", param="num_stages")
    return (num_stages - 1) / (num_stages - 1 + num_chunks)


def equal_cost_chunks(shape: AttentionShape, tokens: int, num_chunks: int, granule: int = 1) -> list[int]:
    """Chunk lengths of equal cost: later chunks see a longer prefix, so they are shorter.

    Cost of a prompt up to x is 2 P x + flops_per_pair x^2 / 2; the ends solve that quadratic at equal steps.
    Lengths are multiples of `granule` except the last.
    """
    if not 1 <= num_chunks <= tokens:
        raise RequestError(f"num_chunks must be 1 to {tokens}, not {num_chunks}", param="num_chunks")
    a, b = shape.flops_per_pair / 2, 2 * shape.active_params
    whole = a * tokens * tokens + b * tokens
    ends = []
    for i in range(1, num_chunks + 1):
        target = whole * i / num_chunks
        end = (-b + math.sqrt(b * b + 4 * a * target)) / (2 * a)
        ends.append(tokens if i == num_chunks else round(end / granule) * granule)
    chunks = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return [chunk for chunk in chunks if chunk > 0]


class ContextRun(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of one prompt over CP x TP ranks, by part."""

    attention_s: float
    gemm_s: float
    reduce_s: float
    exposed_ring_s: float
    total_s: float
    flops_per_rank: float


def context_parallel_s(
    shape: AttentionShape,
    *,
    tokens: float,
    prefix: float = 0.0,
    num_cp: int,
    num_tp: int,
    hidden_size: int,
    attention_flops: float,
    gemm_flops: float,
    scale_up: float,
    ring_bandwidth: float,
    kv_element_bytes: float = 2.0,
    kv_bytes_per_token_layer: float | None = None,
    activation_bytes: float = 2.0,
    parallel_efficiency: float = 1.0,
) -> ContextRun:
    """Prefill with context parallelism over nodes and tensor parallelism inside.

    `attention_flops`, `gemm_flops`: achieved FLOP/s of one rank; `scale_up`: all-reduce bus bandwidth inside a node,
    `ring_bandwidth`: bytes a second of one rank round the ring. Two all-reduces a layer; the ring is exposed where it
    takes longer than the attention of one step.
    """
    ranks = num_cp * num_tp
    work = shape.work(tokens, prefix)
    attention = work.attention_flops / ranks / attention_flops
    gemm = work.gemm_flops / ranks / gemm_flops
    per_node = tokens / num_cp
    share = (num_tp - 1) / num_tp
    reduce = shape.num_layers * 2 * 2 * share * per_node * hidden_size * activation_bytes / scale_up
    if kv_bytes_per_token_layer is None:
        kv_bytes_per_token_layer = shape.num_kv_heads * (shape.qk_dim + shape.value_dim) * kv_element_bytes
    # Heads of KV are split over TP ranks, each of which has a link of its own.
    step_bytes = ring_step_bytes(
        new_tokens=tokens,
        prefix=prefix,
        num_ranks=num_cp,
        kv_bytes_per_token_layer=kv_bytes_per_token_layer / min(num_tp, max(1, shape.num_kv_heads)),
    )
    steps = shape.num_layers * (num_cp - 1)
    compute_step = attention / (shape.num_layers * num_cp)
    exposed = steps * max(0.0, step_bytes / ring_bandwidth - compute_step)
    total = (attention + gemm + reduce + exposed) / parallel_efficiency
    return ContextRun(
        attention_s=attention,
        gemm_s=gemm,
        reduce_s=reduce,
        exposed_ring_s=exposed,
        total_s=total,
        flops_per_rank=work.flops / ranks / total,
    )
