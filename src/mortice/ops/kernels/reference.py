"""What each kernel must give, in PyTorch and float64 where that is not said otherwise. Slow and plain."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def dense(a: Tensor, b: Tensor) -> Tensor:
    return a.double() @ b.double()


def activated(x: Tensor, name: str) -> Tensor:
    if name == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    return F.relu(x) if name == "relu" else F.silu(x) if name == "silu" else x


def grouped(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    ends = offsets.tolist()
    return torch.cat([dense(x[ends[g] : ends[g + 1]], w[g].T) for g in range(len(w))])


def blocks(scales: Tensor, rows: int, columns: int, height: int, width: int) -> Tensor:
    """Scales of blocks as one number an element."""
    tall = scales.double().repeat_interleave(height, 0)[:rows]
    return tall.repeat_interleave(width, 1)[:, :columns]


def unpacked_int4(w: Tensor) -> Tensor:
    return torch.stack([w & 15, w >> 4], -1).flatten(1).double()


def rms_norm(x: Tensor, w: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x.double(), w.shape, w.double(), eps)


def swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.double().chunk(2, -1)
    return F.silu(gate) * up


def geglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.double().chunk(2, -1)
    return F.gelu(gate, approximate="tanh") * up


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.double().chunk(2, -1)
    c, s = cos.double()[:, None], sin.double()[:, None]
    return torch.cat([a * c - b * s, b * c + a * s], -1)


def attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool = False, window: int = 0
) -> tuple[Tensor, Tensor]:
    """y [B, S, H, D] and log-sum-exps [B, H, S]."""
    shared = q.shape[2] // k.shape[2]
    wide_k, wide_v = (x.double().repeat_interleave(shared, 2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), wide_k) * scale
    late = torch.arange(k.shape[1])[None, :] - torch.arange(q.shape[1])[:, None] - (k.shape[1] - q.shape[1])
    if causal:
        scores = scores.masked_fill(late > 0, -math.inf)
    if window:
        scores = scores.masked_fill(late <= -window, -math.inf)
    y = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1).nan_to_num(0), wide_v)
    return y, scores.logsumexp(-1)


def gradients(
    q: Tensor, k: Tensor, v: Tensor, dy: Tensor, scale: float, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (x.double().requires_grad_() for x in (q, k, v))
    y, _ = attention(q, k, v, scale, causal)
    dq, dk, dv = torch.autograd.grad(y, (q, k, v), dy.double())
    return dq, dk, dv


def ragged(
    q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor, scale: float, causal: bool
) -> Tensor:
    a, b = queries.tolist(), keys.tolist()
    parts = []
    for i in range(len(a) - 1):
        one_k, one_v = k[None, b[i] : b[i + 1]], v[None, b[i] : b[i + 1]]
        parts.append(attention(q[None, a[i] : a[i + 1]], one_k, one_v, scale, causal)[0][0])
    return torch.cat(parts)


def gathered(pages: Tensor, table: Tensor, length: int) -> Tensor:
    """Rows of one sequence from pages [P, page, ...], table [pages]."""
    page = pages.shape[1]
    return pages[table[: -(-length // page)].long()].flatten(0, 1)[:length]


def topk_gate(x: Tensor, k: int, renormalize: bool) -> tuple[Tensor, Tensor]:
    weights, ids = x.double().softmax(-1).topk(k, -1)
    return (weights / weights.sum(-1, keepdim=True) if renormalize else weights), ids.int()


def sample(x: Tensor, u: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    p = (x.double() / temperature).softmax(-1)
    falling, _ = p.sort(-1, descending=True)
    sums = falling.cumsum(-1)
    last = (sums < top_p).sum(-1, keepdim=True).clamp(max=p.shape[-1] - 1)
    if top_k:
        last = last.clamp(max=top_k - 1)
    kept = torch.where(p >= falling.gather(-1, last), p, 0)
    sums = kept.cumsum(-1)
    return ((sums > u.double()[:, None] * sums[:, -1:]) & (kept > 0)).int().argmax(-1).int()
