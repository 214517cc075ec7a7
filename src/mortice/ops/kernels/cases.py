"""One trial of each kernel: random arguments of ragged shapes, and what must come out. Tests, `mortice tile` and runs
on other machines draw from here, so that all check the same.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mortice import tile
from mortice.ops.kernels import reference
from mortice.ops.kernels.attention import attention
from mortice.ops.kernels.attention_backward import (
    attention_backward,
    attention_backward_keys,
    attention_backward_queries,
    attention_delta,
)
from mortice.ops.kernels.attention_decode import combine, paged_decode
from mortice.ops.kernels.attention_ragged import attention_paged, attention_ragged
from mortice.ops.kernels.elementwise import geglu, rotary, softmax, swiglu
from mortice.ops.kernels.experts import permute, topk_gate, unpermute
from mortice.ops.kernels.gemm import gemm_nn, gemm_nt, gemm_split_k, gemm_tn, linear, sum_splits
from mortice.ops.kernels.gemm_fp8 import gemm_fp8
from mortice.ops.kernels.gemm_grouped import grouped_gemm, grouped_gemm_fp8
from mortice.ops.kernels.gemm_thin import gemm_thin, gemm_thin_split
from mortice.ops.kernels.gemv import gemv, gemv_int4, gemv_int8
from mortice.ops.kernels.mla import mla_decode
from mortice.ops.kernels.norm import add_rms_norm, rms_norm
from mortice.ops.kernels.panels import linear_panels, pack_panels, rows_of_panels
from mortice.ops.kernels.quantize import dequantize, quantize
from mortice.ops.kernels.sampling import sample

SIZES = (1, 7, 8, 31, 32, 33, 63, 64, 65, 100)
TYPES = (torch.float32, torch.bfloat16, torch.float16)
PRECISION = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 2e-3}
SMALL = {"BM": 32, "BN": 48, "BK": 32}


@dataclass
class Trial:
    """tolerance: of the norm of the error against the norm of what is expected; 0 asks for equality. finish: from the
    kernel's results to what is compared."""

    arguments: tuple[Any, ...]
    expected: tuple[Tensor, ...]
    tolerance: float
    constants: dict[str, Any] = field(default_factory=dict)
    finish: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] = lambda results: results

    def error(self, results: Any) -> float:
        """The largest of all results."""
        found = self.finish(results if isinstance(results, tuple) else (results,))
        return max(relative(a, b) for a, b in zip(found, self.expected, strict=True))


class Draw(random.Random):
    def size(self) -> int:
        return self.choice(SIZES)

    def dtype(self) -> torch.dtype:
        return self.choice(TYPES)

    def half(self) -> torch.dtype:
        """A type that the matrix unit of a GPU takes as it is."""
        return self.choice(TYPES[1:])

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        generator = torch.Generator().manual_seed(self.getrandbits(32))
        return torch.randn(*shape, generator=generator).to(dtype)

    def whole(self, low: int, high: int, *shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
        generator = torch.Generator().manual_seed(self.getrandbits(32))
        return torch.randint(low, high, shape, generator=generator).to(dtype)


@dataclass(frozen=True)
class Case:
    """specs: arguments without data for a shape as `--shape` takes it, whose meaning is `shape`; kernels that have none
    (pages, experts, panels) are shown for the arguments of a trial."""

    kernel: Any
    trial: Callable[[Draw], Trial]
    shape: str = ""
    specs: Callable[[tuple[int, ...], tile.DType], tuple[Any, ...]] | None = None


def relative(found: Tensor, expected: Tensor) -> float:
    """Infinite where one is NaN or has infinities that the other has not."""
    a, b = found.double(), expected.double()
    if a.shape != b.shape or a.isnan().any() or not torch.equal(a.isinf(), b.isinf()):
        return float("inf")
    a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
    norm = b.norm().item()
    return float((a - b).norm().item() / (norm if norm else 1.0))


def trial_gemm(draw: Draw) -> Trial:
    m, n, k, dtype = draw.size(), draw.size(), draw.size(), draw.dtype()
    a, b = draw.normal(m, k, dtype=dtype), draw.normal(n, k, dtype=dtype)
    return Trial((a, b), (reference.dense(a, b.T),), PRECISION[dtype], SMALL)


def trial_gemm_nn(draw: Draw) -> Trial:
    m, n, k, dtype = draw.size(), draw.size(), draw.size(), draw.dtype()
    a, b = draw.normal(m, k, dtype=dtype), draw.normal(k, n, dtype=dtype)
    return Trial((a, b), (reference.dense(a, b),), PRECISION[dtype], SMALL)


def trial_gemm_tn(draw: Draw) -> Trial:
    m, n, k, dtype = draw.size(), draw.size(), draw.size(), draw.dtype()
    a, b = draw.normal(k, m, dtype=dtype), draw.normal(k, n, dtype=dtype)
    return Trial((a, b), (reference.dense(a.T, b),), PRECISION[dtype], SMALL)


def trial_linear(draw: Draw) -> Trial:
    m, n, k, dtype = draw.size(), draw.size(), draw.size(), draw.dtype()
    a, b = draw.normal(m, k, dtype=dtype), draw.normal(n, k, dtype=dtype)
    bias = draw.choice((None, draw.normal(n, dtype=dtype)))
    name = draw.choice(("none", "relu", "silu", "gelu_tanh"))
    y = reference.dense(a, b.T) + (bias.double() if bias is not None else 0)
    return Trial(
        (a, b, bias), (reference.activated(y, name),), PRECISION[dtype], {"activation": name, **SMALL}
    )


def in_panels(w: Tensor) -> Tensor:
    """w [N, K] bf16 as `pack_panels` makes it."""
    n, k = w.shape
    padded = torch.nn.functional.pad(w, (0, -k % 32, 0, -n % 32))
    squares = padded.reshape(-(-n // 32), 2, 16, -(-k // 32), 16, 2)
    return squares.permute(0, 3, 1, 4, 2, 5).reshape(-(-n // 32), -(-k // 32), 1024)


def trial_pack_panels(draw: Draw) -> Trial:
    w = draw.normal(draw.size(), draw.size(), dtype=torch.bfloat16)
    return Trial((w,), (in_panels(w),), 0)


def trial_rows_of_panels(draw: Draw) -> Trial:
    w = draw.normal(draw.size(), draw.choice((32, 64, 96)), dtype=torch.bfloat16)
    ids = draw.whole(0, len(w), draw.size(), dtype=torch.int64)
    return Trial((in_panels(w), ids), (w[ids],), 0)


def trial_linear_panels(draw: Draw) -> Trial:
    m, n, k = draw.size(), draw.size(), draw.choice((32, 64, 96, 128))
    x, w = draw.normal(m, k, dtype=torch.bfloat16), draw.normal(n, k, dtype=torch.bfloat16)
    bias = draw.choice((None, draw.normal(n, dtype=torch.bfloat16)))
    y = reference.dense(x, w.T) + (bias.double() if bias is not None else 0)
    tiles = {"BM": draw.choice((16, 32)), "BN": draw.choice((32, 64)), "BK": draw.choice((32, 64))}
    return Trial((x, in_panels(w), bias, n), (y,), 5e-3, tiles)


def trial_split_k(draw: Draw) -> Trial:
    trial = trial_gemm(draw)
    return Trial(
        trial.arguments,
        trial.expected,
        1e-5,
        {"splits": draw.choice((1, 2, 5)), **SMALL},
        lambda r: (r[0].sum(0),),
    )


def trial_sum_splits(draw: Draw) -> Trial:
    p, dtype = draw.normal(draw.choice((1, 3)), draw.size(), draw.size()), draw.dtype()
    return Trial((p, torch.empty(0, dtype=dtype)), (p.double().sum(0),), PRECISION[dtype], {"BN": 32})


def offsets(draw: Draw, groups: int) -> Tensor:
    sizes = [draw.choice((0, 1, 31, 32, 33)) for _ in range(groups)]
    return torch.tensor([0, *sizes], dtype=torch.int32).cumsum(0, dtype=torch.int32)


def trial_grouped(draw: Draw) -> Trial:
    ends, n, k, dtype = offsets(draw, 4), draw.size(), draw.size(), draw.dtype()
    x, w = draw.normal(int(ends[-1]), k, dtype=dtype), draw.normal(4, n, k, dtype=dtype)
    return Trial((x, w, ends), (reference.grouped(x, w, ends),), PRECISION[dtype], SMALL)


def narrow(draw: Draw, *shape: int) -> Tensor:
    return draw.normal(*shape).to(torch.float8_e4m3fn)


def trial_fp8(draw: Draw) -> Trial:
    m, n, k = draw.size(), draw.choice((1, 100, 130)), draw.choice((32, 128, 200, 256))
    a, b = narrow(draw, m, k), narrow(draw, n, k)
    if draw.choice((True, False)):
        expected = a.double() @ b.double().T * 0.5
        return Trial((a, b, None, None, 0.5), (expected,), 1e-2, {"BM": 64, "BN": 64})
    sa, sb = draw.normal(m, -(-k // 128)).abs(), draw.normal(-(-n // 128), -(-k // 128)).abs()
    wide_a = a.double() * reference.blocks(sa, m, k, 1, 128)
    wide_b = b.double() * reference.blocks(sb, n, k, 128, 128)
    constants = {"BM": 64, "BN": draw.choice((64, 256))}
    return Trial((a, b, sa, sb, 0.5), (wide_a @ wide_b.T * 0.5,), 1e-2, constants)


def trial_grouped_fp8(draw: Draw) -> Trial:
    ends, n, k = offsets(draw, 3), draw.choice((1, 100, 130)), draw.choice((32, 128, 200, 256))
    t, kb = int(ends[-1]), -(-k // 128)
    x, w = narrow(draw, t, k), narrow(draw, 3, n, k)
    sx, sw = draw.normal(t, kb).abs(), draw.normal(3, -(-n // 128), kb).abs()
    wide_x = x.double() * reference.blocks(sx, t, k, 1, 128)
    wide_w = torch.stack(
        [one.double() * reference.blocks(s, n, k, 128, 128) for one, s in zip(w, sw, strict=True)]
    )
    expected = reference.grouped(wide_x, wide_w, ends)
    return Trial((x, sx, w, sw, ends), (expected,), 1e-2, {"BM": 64, "BN": draw.choice((64, 256))})


def trial_thin(draw: Draw) -> Trial:
    m, n, k, dtype = draw.choice((1, 7, 16, 17)), draw.size(), draw.size(), draw.half()
    x, w = draw.normal(m, k, dtype=dtype), draw.normal(n, k, dtype=dtype)
    return Trial((x, w), (reference.dense(x, w.T),), PRECISION[dtype], {"BK": 64, "stages": 3})


def trial_thin_split(draw: Draw) -> Trial:
    trial = trial_thin(draw)
    constants = {"BK": 64, "stages": 2, "splits": draw.choice((1, 2, 3)), "BJ": 128}
    return Trial(trial.arguments, trial.expected, trial.tolerance, constants, lambda r: r[:1])


def trial_gemv(draw: Draw) -> Trial:
    m, n, k, dtype = draw.choice((1, 2)), draw.size(), draw.size(), draw.dtype()
    x, w = draw.normal(m, k, dtype=dtype), draw.normal(n, k, dtype=dtype)
    return Trial((x, w), (reference.dense(x, w.T),), PRECISION[dtype], {"BK": 48})


def trial_gemv_int8(draw: Draw) -> Trial:
    m, n, k, dtype = draw.choice((1, 2)), draw.size(), draw.size(), draw.dtype()
    x, w, s = (
        draw.normal(m, k, dtype=dtype),
        draw.whole(-128, 128, n, k, dtype=torch.int8),
        draw.normal(n).abs(),
    )
    return Trial(
        (x, w, s), (x.double() @ (w.double() * s.double()[:, None]).T,), PRECISION[dtype], {"BK": 48}
    )


def trial_gemv_int4(draw: Draw) -> Trial:
    m, n, k, dtype = draw.choice((1, 2)), draw.size(), 32 * draw.choice((1, 2, 5)), draw.dtype()
    x, w = draw.normal(m, k, dtype=dtype), draw.whole(0, 256, n, k // 2, dtype=torch.uint8)
    s, z = draw.normal(n, k // 32), draw.whole(0, 16, n, k // 32).float()
    full = (reference.unpacked_int4(w) - reference.blocks(z, n, k, 1, 32)) * reference.blocks(s, n, k, 1, 32)
    return Trial((x, w, s, z), (x.double() @ full.T,), PRECISION[dtype], {"BK": 48})


def trial_rms_norm(draw: Draw) -> Trial:
    rows, d, dtype = draw.size(), draw.size(), draw.dtype()
    x, w = draw.normal(rows, d, dtype=dtype), draw.normal(d, dtype=dtype)
    return Trial((x, w, 1e-5), (reference.rms_norm(x, w, 1e-5),), PRECISION[dtype])


def trial_add_rms_norm(draw: Draw) -> Trial:
    rows, d, dtype = draw.size(), draw.size(), draw.dtype()
    x, r, w = (
        draw.normal(rows, d, dtype=dtype),
        draw.normal(rows, d, dtype=dtype),
        draw.normal(d, dtype=dtype),
    )
    return Trial((x, r, w, 1e-5), (reference.rms_norm(x + r, w, 1e-5), x + r), 2 * PRECISION[dtype])


def trial_swiglu(draw: Draw) -> Trial:
    dtype = draw.dtype()
    x = draw.normal(draw.size(), 2 * draw.size(), dtype=dtype)
    return Trial((x,), (reference.swiglu(x),), PRECISION[dtype], {"BI": 48})


def trial_geglu(draw: Draw) -> Trial:
    dtype = draw.dtype()
    x = draw.normal(draw.size(), 2 * draw.size(), dtype=dtype)
    return Trial((x,), (reference.geglu(x),), PRECISION[dtype])


def trial_rotary(draw: Draw) -> Trial:
    t, half, dtype = draw.size(), draw.choice((1, 7, 32)), draw.dtype()
    x, angles = draw.normal(t, 3, 2 * half, dtype=dtype), draw.normal(t, half)
    tables = angles.cos().to(dtype), angles.sin().to(dtype)
    return Trial((x, *tables), (reference.rotary(x, *tables),), PRECISION[dtype])


def trial_softmax(draw: Draw) -> Trial:
    dtype = draw.dtype()
    x = draw.normal(draw.size(), draw.size(), dtype=dtype) * 20
    return Trial((x,), (x.double().softmax(-1),), PRECISION[dtype])


def trial_quantize(draw: Draw) -> Trial:
    x, group = draw.normal(draw.size(), draw.size()), draw.choice((8, 32))
    to, step = draw.choice(((tile.e4m3, 2**-4), (tile.e5m2, 2**-3), (tile.i8, 2**-7)))

    def back(results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        q, s = results
        return (q.double() * reference.blocks(s, x.shape[0], x.shape[1], 1, group),)

    return Trial((x,), (x.double(),), step, {"to": to, "group": group}, back)


def trial_dequantize(draw: Draw) -> Trial:
    m, k = draw.size(), draw.size()
    q, s = draw.normal(m, k).to(torch.float8_e4m3fn), draw.normal(m, -(-k // 32))
    return Trial((q, s), (q.double() * reference.blocks(s, m, k, 1, 32),), 5e-3, {"group": 32})


def trial_topk_gate(draw: Draw) -> Trial:
    experts, renormalize = draw.choice((8, 33, 64)), draw.choice((True, False))
    x = draw.normal(draw.size(), experts)
    expected = reference.topk_gate(x, 6, renormalize)
    return Trial((x,), expected, 1e-5, {"k": 6, "renormalize": renormalize})


def trial_permute(draw: Draw) -> Trial:
    x = draw.normal(draw.size(), draw.size(), dtype=draw.dtype())
    rows = draw.whole(0, len(x), draw.size())
    return Trial((x, rows), (x[rows.long()],), 0, {"BD": 48})


def trial_unpermute(draw: Draw) -> Trial:
    dtype = draw.dtype()
    y, t = draw.normal(draw.size(), draw.size(), dtype=dtype), draw.size()
    places, weights = draw.whole(0, len(y), t, 3), draw.normal(t, 3).abs()
    expected = (y.double()[places.long()] * weights.double()[..., None]).sum(1)
    return Trial((y, places, weights), (expected,), PRECISION[dtype], {"BD": 48})


def trial_sample(draw: Draw) -> Trial:
    rows = draw.size()
    x, u = draw.normal(rows, draw.choice((2, 100, 257))) * 3, draw.whole(0, 1000, rows).float() / 1000 + 3e-4
    rest = draw.choice((0.7, 1.0)), draw.choice((0, 1, 5)), draw.choice((0.5, 0.9, 1.0))
    return Trial((x, u, *rest), (reference.sample(x, u, *rest),), 0)


def heads(draw: Draw) -> tuple[int, int]:
    return draw.choice(((4, 2), (1, 1), (3, 3), (4, 1)))


def trial_attention(draw: Draw) -> Trial:
    (h, g), s, t, dtype = heads(draw), draw.size(), draw.size(), draw.dtype()
    q, k, v = (draw.normal(2, n, x, 32, dtype=dtype) for n, x in ((s, h), (t, g), (t, g)))
    causal = draw.choice((True, False))
    window = draw.choice((0, 1, 17)) if causal else 0
    y, sums = reference.attention(q, k, v, 0.2, causal, window)
    tolerance = max(PRECISION[dtype], 8e-3 if dtype != torch.float32 else 0)
    return Trial(
        (q, k, v, 0.2), (y, sums), tolerance, {"causal": causal, "window": window, "BM": 32, "BN": 32}
    )


def trial_ragged(draw: Draw) -> Trial:
    (h, g), queries, keys, dtype = heads(draw), offsets(draw, 3), offsets(draw, 3), draw.dtype()
    q = draw.normal(int(queries[-1]), h, 32, dtype=dtype)
    k, v = (draw.normal(int(keys[-1]), g, 32, dtype=dtype) for _ in range(2))
    causal, longest = draw.choice((True, False)), int(queries.diff().max())
    expected = reference.ragged(q, k, v, queries, keys, 0.2, causal)
    constants = {"causal": causal, "BM": 32, "BN": 32}
    return Trial((q, k, v, queries, keys, longest, 0.2), (expected,), max(8e-3, PRECISION[dtype]), constants)


def pages(draw: Draw, lengths: list[int], page: int) -> tuple[Tensor, int]:
    """Page numbers of each sequence, garbage beyond its length, and how many pages there are."""
    table = torch.full((len(lengths), 12), 10**6, dtype=torch.int32)
    free = list(range(sum(-(-n // page) for n in lengths) + 1))
    draw.shuffle(free)
    for row, length in enumerate(lengths):
        for i in range(-(-length // page)):
            table[row, i] = free.pop()
    return table, sum(-(-n // page) for n in lengths) + 1


def trial_paged(draw: Draw) -> Trial:
    (h, g), queries, dtype = heads(draw), offsets(draw, 3), draw.dtype()
    lengths = [n + draw.choice((0, 5, 40)) for n in queries.diff().tolist()]
    table, count = pages(draw, lengths, 8)
    q = draw.normal(int(queries[-1]), h, 32, dtype=dtype)
    k, v = (draw.normal(count, 8, g, 32, dtype=dtype) for _ in range(2))
    ends = torch.tensor([0, *lengths]).cumsum(0)
    flat_k, flat_v = (
        torch.cat([reference.gathered(x, table[i], n) for i, n in enumerate(lengths)]) for x in (k, v)
    )
    expected = reference.ragged(q, flat_k, flat_v, queries, ends, 0.2, True)
    arguments = (
        q,
        k,
        v,
        table,
        queries,
        torch.tensor(lengths, dtype=torch.int32),
        int(queries.diff().max()),
        0.2,
    )
    return Trial(arguments, (expected,), max(8e-3, PRECISION[dtype]), {"BM": 32, "BN": 16})


def merged(results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    parts, sums = (x.double() for x in results)
    weight = (sums - sums.logsumexp(1, keepdim=True)).exp().nan_to_num(0)
    return ((parts * weight[..., None]).sum(1),)


def trial_paged_decode(draw: Draw) -> Trial:
    (h, g), dtype = heads(draw), draw.dtype()
    lengths = [draw.choice((0, 1, 8, 33, 90)) for _ in range(3)]
    table, count = pages(draw, lengths, 8)
    q, k, v = (
        draw.normal(3, h, 32, dtype=dtype),
        *(draw.normal(count, 8, g, 32, dtype=dtype) for _ in range(2)),
    )
    rows = []
    for i, n in enumerate(lengths):
        one_k, one_v = (reference.gathered(x, table[i], n)[None] for x in (k, v))
        rows.append(reference.attention(q[i][None, None], one_k, one_v, 0.2)[0][0, 0])
    arguments = (q, k, v, table, torch.tensor(lengths, dtype=torch.int32), 0.2)
    return Trial(
        arguments, (torch.stack(rows),), max(8e-3, PRECISION[dtype]), {"BN": 16, "splits": 3}, merged
    )


def trial_mla_decode(draw: Draw) -> Trial:
    dtype, lengths = (
        draw.choice((torch.float32, torch.bfloat16)),
        [draw.choice((0, 1, 8, 33, 90)) for _ in range(3)],
    )
    table, count = pages(draw, lengths, 8)
    q, kv = draw.normal(3, 5, 40, dtype=dtype), draw.normal(count, 8, 40, dtype=dtype)
    rows = []
    for i, n in enumerate(lengths):
        keys = reference.gathered(kv, table[i], n)[None, :, None]
        rows.append(reference.attention(q[i][None, None], keys, keys[..., :32], 0.3)[0][0, 0])
    arguments = (q, kv, table, torch.tensor(lengths, dtype=torch.int32), 0.3)
    constants = {"DV": 32, "BH": 4, "BN": 16, "splits": 2}
    return Trial(arguments, (torch.stack(rows),), max(8e-3, PRECISION[dtype]), constants, merged)


def trial_combine(draw: Draw) -> Trial:
    y, sums = draw.normal(3, 4, 5, 32), draw.normal(3, 4, 5)
    sums[0, :, 0] = -torch.inf
    return Trial((y, sums, torch.empty(0)), merged((y, sums)), 1e-5)


def backward(draw: Draw) -> tuple[tuple[Any, ...], tuple[Tensor, Tensor, Tensor], bool, torch.dtype]:
    (h, g), s, t, dtype = heads(draw), draw.size(), draw.size(), draw.dtype()
    causal = draw.choice((True, False)) and s <= t
    q, dy = (draw.normal(2, s, h, 32, dtype=dtype) for _ in range(2))
    k, v = (draw.normal(2, t, g, 32, dtype=dtype) for _ in range(2))
    y, sums = reference.attention(q, k, v, 0.2, causal)
    delta = (y * dy.double()).sum(-1).transpose(1, 2).float().contiguous()
    return (
        (q, k, v, dy, sums.float(), delta, 0.2),
        reference.gradients(q, k, v, dy, 0.2, causal),
        causal,
        dtype,
    )


def trial_backward_keys(draw: Draw) -> Trial:
    arguments, (_, dk, dv), causal, dtype = backward(draw)
    tolerance = 1e-4 if dtype == torch.float32 else 1.5e-2
    if arguments[1].shape[1] == 1:  # the softmax of one key is constant: dK is rounding alone
        dk = dk * 0
        return Trial(arguments, (dv,), tolerance, {"causal": causal, "BM": 32, "BN": 32}, lambda r: (r[1],))
    return Trial(arguments, (dk, dv), tolerance, {"causal": causal, "BM": 32, "BN": 32})


def trial_backward_queries(draw: Draw) -> Trial:
    arguments, (dq, _, _), causal, dtype = backward(draw)
    constants = {"causal": causal, "BM": 32, "BN": 32}
    if arguments[1].shape[1] == 1:
        return Trial(arguments, (dq * 0,), 1e-1, constants)
    return Trial(arguments, (dq,), 1e-4 if dtype == torch.float32 else 1.5e-2, constants)


def trial_backward(draw: Draw) -> Trial:
    (q, k, v, dy, sums, _, scale), (dq, dk, dv), causal, dtype = backward(draw)
    y, _ = reference.attention(q, k, v, scale, causal)
    one = k.shape[1] == 1
    expected = (dv,) if one else (dq, dk, dv)
    return Trial(
        (q, k, v, y.to(dtype), dy, sums, scale), expected, 1e-4 if dtype == torch.float32 else 1.5e-2,
        {"causal": causal, "BM": 32, "BN": 32}, lambda r: (r[2],) if one else r[:3],
    )  # fmt: skip


def trial_delta(draw: Draw) -> Trial:
    y, dy = draw.normal(2, draw.size(), 3, 32), draw.normal(2, 1, 3, 32)
    dy = dy.expand_as(y).contiguous()
    return Trial((y, dy), ((y.double() * dy.double()).sum(-1).transpose(1, 2),), 1e-5)


def of_mnk(shape: tuple[int, ...], dtype: tile.DType) -> tuple[Any, ...]:
    m, n, k = shape
    return tile.Spec((m, k), dtype), tile.Spec((n, k), dtype)


def of_attention(shape: tuple[int, ...], dtype: tile.DType) -> tuple[Any, ...]:
    one = tile.Spec(tuple(shape), dtype)
    return one, one, one, shape[3] ** -0.5


def of_gradients(tensors: int, sums: int) -> Callable[[tuple[int, ...], tile.DType], tuple[Any, ...]]:
    """So many tensors of the shape, then so many of a number a query and head, then the scale."""

    def specs(shape: tuple[int, ...], dtype: tile.DType) -> tuple[Any, ...]:
        b, s, h, d = shape
        return (
            *(tile.Spec(tuple(shape), dtype),) * tensors,
            *(tile.Spec((b, h, s), tile.f32),) * sums,
            d**-0.5,
        )

    return specs


def of_rows(shape: tuple[int, ...], dtype: tile.DType) -> tuple[Any, ...]:
    n, d = shape
    return tile.Spec((n, d), dtype), tile.Spec((d,), dtype), 1e-5


def of_matrix(shape: tuple[int, ...], dtype: tile.DType) -> tuple[Any, ...]:
    return (tile.Spec(tuple(shape), dtype),)


CASES: dict[str, Case] = {
    "gemm": Case(gemm_nt, trial_gemm, "M,N,K", of_mnk),
    "gemm_nn": Case(gemm_nn, trial_gemm_nn, "M,N,K", lambda x, t: (tile.Spec((x[0], x[2]), t), tile.Spec((x[2], x[1]), t))),
    "gemm_tn": Case(gemm_tn, trial_gemm_tn, "M,N,K", lambda x, t: (tile.Spec((x[2], x[0]), t), tile.Spec((x[2], x[1]), t))),
    "linear": Case(linear, trial_linear, "M,N,K", lambda shape, dtype: (*of_mnk(shape, dtype), None)),
    "linear_panels": Case(linear_panels, trial_linear_panels),
    "pack_panels": Case(pack_panels, trial_pack_panels),
    "rows_of_panels": Case(rows_of_panels, trial_rows_of_panels),
    "gemm_split_k": Case(gemm_split_k, trial_split_k, "M,N,K", of_mnk),
    "sum_splits": Case(sum_splits, trial_sum_splits),
    "grouped_gemm": Case(grouped_gemm, trial_grouped),
    "grouped_gemm_fp8": Case(grouped_gemm_fp8, trial_grouped_fp8),
    "gemm_fp8": Case(gemm_fp8, trial_fp8),
    "gemm_thin": Case(gemm_thin, trial_thin, "M,N,K", of_mnk),
    "gemm_thin_split": Case(gemm_thin_split, trial_thin_split, "M,N,K", of_mnk),
    "gemv": Case(gemv, trial_gemv, "M,N,K", of_mnk),
    "gemv_int8": Case(gemv_int8, trial_gemv_int8),
    "gemv_int4": Case(gemv_int4, trial_gemv_int4),
    "rms_norm": Case(rms_norm, trial_rms_norm, "N,D", of_rows),
    "add_rms_norm": Case(add_rms_norm, trial_add_rms_norm),
    "swiglu": Case(swiglu, trial_swiglu, "T,W", of_matrix),
    "geglu": Case(geglu, trial_geglu, "T,W", of_matrix),
    "rotary": Case(rotary, trial_rotary),
    "softmax": Case(softmax, trial_softmax, "N,D", of_matrix),
    "quantize": Case(quantize, trial_quantize),
    "dequantize": Case(dequantize, trial_dequantize),
    "topk_gate": Case(topk_gate, trial_topk_gate),
    "permute": Case(permute, trial_permute),
    "unpermute": Case(unpermute, trial_unpermute),
    "sample": Case(sample, trial_sample),
    "attention": Case(attention, trial_attention, "B,S,H,D", of_attention),
    "attention_ragged": Case(attention_ragged, trial_ragged),
    "attention_paged": Case(attention_paged, trial_paged),
    "paged_decode": Case(paged_decode, trial_paged_decode),
    "mla_decode": Case(mla_decode, trial_mla_decode),
    "combine": Case(combine, trial_combine),
    "attention_delta": Case(attention_delta, trial_delta, "B,S,H,D", lambda x, t: (tile.Spec(x, t),) * 2),
    "attention_backward": Case(attention_backward, trial_backward, "B,S,H,D", of_gradients(5, 1)),
    "attention_backward_keys": Case(attention_backward_keys, trial_backward_keys, "B,S,H,D", of_gradients(4, 2)),
    "attention_backward_queries": Case(attention_backward_queries, trial_backward_queries, "B,S,H,D", of_gradients(4, 2)),
}  # fmt: skip
