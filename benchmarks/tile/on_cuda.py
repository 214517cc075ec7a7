"""Parts of the CUDA benchmark. A row holds a name, a shape, whether the result is right with its error, the median time
in microseconds of ours and theirs, and the ratio theirs / ours (above 1: ours is faster)."""

import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from measuring import COPY_BANDWIDTH, Prepared, Row, each, error, prepared, row, show, timed
from thin import thin

from mortice import tile
from mortice.ops.kernels.attention import attention
from mortice.ops.kernels.attention_backward import attention_backward as attention_backward_at_once
from mortice.ops.kernels.attention_backward import (
    attention_backward_keys,
    attention_backward_queries,
    attention_delta,
)
from mortice.ops.kernels.attention_decode import combine, paged_decode
from mortice.ops.kernels.cases import CASES, Draw
from mortice.ops.kernels.gemm import gemm_nt
from mortice.ops.kernels.gemm_fp8 import gemm_fp8
from mortice.ops.kernels.gemm_grouped import grouped_gemm_fp8
from mortice.ops.kernels.mla import mla_decode
from mortice.ops.kernels.norm import rms_norm
from mortice.tile.cuda import driver
from mortice.tile.cuda.compile import compile_function
from mortice.tile.cuda.nvrtc import compile_text, version
from mortice.tile.passes.gpu.cards import SM_80
from mortice.tile.passes.gpu.lower import Choices

LLAMA = [(4096, 1024, 8192), (4096, 8192, 8192), (4096, 28672, 8192), (4096, 8192, 28672), (8192, 1024, 8192),
         (8192, 8192, 8192), (8192, 28672, 8192), (8192, 8192, 28672)]  # fmt: skip


def run(parts: list[str], quick: bool) -> dict[str, Any]:
    rows: list[Row] = []
    for part in parts:
        try:
            rows += PARTS[part](quick)
        except Exception as error:  # one part's failure must not lose the figures of the others
            rows.append(
                {"name": part, "shape": "", "right": False, "problem": f"{type(error).__name__}: {error}"}
            )
            show(rows[-1])
    return {
        "device": torch.cuda.get_device_name(), "torch": torch.__version__, "nvrtc": ".".join(map(str, version())),
        "date": time.strftime("%Y-%m-%d"), "rows": rows,
    }  # fmt: skip


def gemm(quick: bool) -> list[Row]:
    rows = []
    small = [
        (128, 256, 64),
        (100, 72, 40),
        (1000, 1000, 1000),
        (4097, 520, 4104),
        (63, 65, 127),
        (7, 9, 4103),
        (1, 8, 8),
    ]
    for m, n, k in small:
        a, b = (torch.randn(x, k, device="cuda", dtype=torch.bfloat16) for x in (m, n))
        c = torch.full((m, n), math.nan, device="cuda", dtype=torch.bfloat16)
        prepared(gemm_nt, a, b, out=c)()
        torch.cuda.synchronize()
        rows.append(row("gemm_nt bf16", (m, n, k), error(c, a.double() @ b.double().T), 5e-3))
    shapes = (
        [(4096,) * 3, (8192,) * 3] if quick else [(2048,) * 3, (4096,) * 3, (8192,) * 3, (16384,) * 3, *LLAMA]
    )
    for m, n, k in shapes:
        a, b = (torch.randn(x, k, device="cuda", dtype=torch.bfloat16) for x in (m, n))
        c = torch.full((m, n), math.nan, device="cuda", dtype=torch.bfloat16)
        call = prepared(gemm_nt, a, b, out=c)
        call()
        torch.cuda.synchronize()
        wrong = error(c, (a.float() @ b.float().T) if m * n < 2**27 else torch.matmul(a, b.T))
        rows.append(row("gemm_nt bf16 / cuBLAS", (m, n, k), wrong, 5e-3,
                        timed(call, partial(torch.matmul, a, b.T)), 2 * m * n * k))  # fmt: skip
    return rows


def reference_attention(q: Any, k: Any, v: Any, scale: float, causal: bool) -> tuple[Any, Any]:
    s, t = q.shape[1], k.shape[1]
    wide = [x.double().repeat_interleave(q.shape[2] // k.shape[2], 2) for x in (k, v)]
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), wide[0]) * scale
    if causal:
        late = torch.ones(s, t, device=q.device, dtype=torch.bool).triu(1 + t - s)
        scores = scores.masked_fill(late, -math.inf)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1).nan_to_num(0), wide[1]), scores.logsumexp(-1)


def attention_forward(quick: bool) -> list[Row]:
    rows = []
    for b, s, t, h, g, causal in [(1, 128, 128, 1, 1, False), (2, 200, 333, 4, 2, False), (2, 333, 333, 4, 1, True),
                                  (1, 100, 300, 2, 2, True), (1, 300, 100, 2, 2, True)]:  # fmt: skip
        q = torch.randn(b, s, h, 128, device="cuda", dtype=torch.bfloat16)
        k, v = (torch.randn(b, t, g, 128, device="cuda", dtype=torch.bfloat16) for _ in "kv")
        o = torch.full_like(q, math.nan)
        lse = torch.full((b, h, s), math.nan, device="cuda")
        prepared(attention, q, k, v, 128**-0.5, out=(o, lse), causal=causal)()
        torch.cuda.synchronize()
        want, sums = reference_attention(q, k, v, 128**-0.5, causal)
        alive = sums > -math.inf
        wrong = (lse[alive].double() - sums[alive]).abs().max().item() if not lse.isnan().any() else math.inf
        rows.append(row(f"attention causal={causal}", (b, s, t, h, g), error(o, want), 8e-3))
        rows.append(row("  its log-sum-exp", (b, h, s), wrong, 1e-3))
    shapes = (
        [(2, 8192, 16)]
        if quick
        else [(4, 4096, 16), (2, 8192, 16), (1, 16384, 16), (1, 512, 32), (1, 1024, 32)]
    )
    for b, s, h in shapes:
        q, k, v = (torch.randn(b, s, h, 128, device="cuda", dtype=torch.bfloat16) for _ in "qkv")
        o, lse = torch.full_like(q, math.nan), torch.empty(b, h, s, device="cuda")
        turned = [x.transpose(1, 2) for x in (q, k, v)]
        for causal in (False, True):
            other = partial(torch.nn.functional.scaled_dot_product_attention, *turned, is_causal=causal)
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
                for persistent in (None,) if quick or causal else (None, False):
                    choices = Choices(persistent)
                    call = prepared(
                        attention, q, k, v, 128**-0.5, out=(o, lse), choices=choices, causal=causal
                    )
                    call()
                    wrong = error(o, other().transpose(1, 2))
                    flops = 4 * b * h * s * s * 128 * (0.5 if causal else 1)
                    name = f"attention causal={causal} / cuDNN" + (
                        " one tile a block" if persistent is False else ""
                    )
                    rows.append(row(name, (b, s, h), wrong, 8e-3, timed(call, other), flops))
    return rows


def fp8(quick: bool) -> list[Row]:
    """Tensor scales; theirs is torch._scaled_mm (cuBLASLt)."""
    rows = []
    for m, n, k in [(100, 80, 144), (1000, 1000, 1040), (8192,) * 3] + (
        [] if quick else [(4096,) * 3, (4096, 8192, 8192)]
    ):
        a, b = (torch.randn(x, k, device="cuda").to(torch.float8_e4m3fn) for x in (m, n))
        c = torch.full((m, n), math.nan, device="cuda", dtype=torch.bfloat16)
        call = prepared(gemm_fp8, a, b, None, None, 0.5, out=c)
        call()
        one, half = torch.ones((), device="cuda"), torch.full((), 0.5, device="cuda")
        other = partial(torch._scaled_mm, a, b.T, scale_a=half, scale_b=one, out_dtype=torch.bfloat16)
        wrong = error(c, a.float() @ b.float().T * 0.5)
        times = timed(call, other) if m >= 4096 else None
        rows.append(row("gemm_fp8 / cuBLASLt", (m, n, k), wrong, 1e-2, times, 2 * m * n * k))
    return rows


def older(quick: bool) -> list[Row]:
    """The program for cards before Hopper (mma, ldmatrix, cp.async), on this card; theirs are cuBLAS and torch's own
    flash attention, which is written for those cards too."""
    rows = []
    choices = Choices(card=SM_80)
    shapes = [(100, 72, 40), (1000, 1000, 1000), (63, 65, 127), (7, 9, 4103), (4096,) * 3]
    for m, n, k in shapes if quick else [*shapes, (8192,) * 3]:
        a, b = (torch.randn(x, k, device="cuda", dtype=torch.bfloat16) for x in (m, n))
        c = torch.full((m, n), math.nan, device="cuda", dtype=torch.bfloat16)
        call = prepared(gemm_nt, a, b, out=c, choices=choices)
        call()
        torch.cuda.synchronize()
        wrong = error(c, (a.double() @ b.double().T) if m < 4000 else a.float() @ b.float().T)
        times = timed(call, partial(torch.matmul, a, b.T)) if m >= 1000 else None
        rows.append(row("gemm_nt bf16 as for sm_80 / cuBLAS", (m, n, k), wrong, 5e-3, times, 2 * m * n * k))
    for b, s, t, h, g, causal in [(2, 200, 333, 4, 2, False), (1, 300, 100, 2, 2, True), (2, 4096, 4096, 16, 16, False),
                                  (2, 4096, 4096, 16, 16, True)]:  # fmt: skip
        q = torch.randn(b, s, h, 128, device="cuda", dtype=torch.bfloat16)
        k, v = (torch.randn(b, t, g, 128, device="cuda", dtype=torch.bfloat16) for _ in "kv")
        o, lse = torch.full_like(q, math.nan), torch.empty(b, h, s, device="cuda")
        call = prepared(attention, q, k, v, 128**-0.5, out=(o, lse), choices=choices, causal=causal)
        call()
        times = None
        if s < 1000:
            want = reference_attention(q, k, v, 128**-0.5, causal)[0]
        else:
            turned = [x.transpose(1, 2) for x in (q, k, v)]
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
                other = partial(torch.nn.functional.scaled_dot_product_attention, *turned, is_causal=causal)
                want, times = other().transpose(1, 2), timed(call, other)
        flops = 4 * b * h * s * t * 128 * (0.5 if causal else 1)
        name = f"attention causal={causal} as for sm_80 / flash"
        rows.append(row(name, (b, s, t, h, g), error(o, want), 8e-3, times, flops))
    return rows


def mla(quick: bool) -> list[Row]:
    rows = []
    cases = [(3, 128, [70, 1, 333], 0), (128, 128, [4096] * 128, 1)] + (
        [] if quick else [(64, 128, [8192] * 64, 1), (128, 16, [8192] * 128, 1)]
    )
    for batch, heads, lengths, timing in cases:
        page, pages = 64, [-(-n // 64) for n in lengths]
        kv = torch.randn(sum(pages) + 1, page, 576, device="cuda", dtype=torch.bfloat16)
        q = torch.randn(batch, heads, 576, device="cuda", dtype=torch.bfloat16)
        table = torch.full((batch, max(pages)), 10**6, dtype=torch.int32)
        order, at = torch.randperm(sum(pages)).int(), 0
        for i, count in enumerate(pages):
            table[i, :count] = order[at : at + count]
            at += count
        table, counts = table.cuda(), torch.tensor(lengths, dtype=torch.int32, device="cuda")
        splits = 8 if not timing else max(1, 264 // (batch * -(-heads // 64)))
        parts = torch.full((batch, splits, heads, 512), math.nan, device="cuda")
        sums = torch.full((batch, splits, heads), math.nan, device="cuda")
        made = partial(prepared, mla_decode, q, kv, table, counts, 0.06, out=(parts, sums), splits=splits)
        call = made()
        call()
        torch.cuda.synchronize()
        weight = (sums - sums.logsumexp(1, keepdim=True)).exp().nan_to_num(0)
        found = (parts * weight[..., None]).sum(1)
        wrong = 0.0
        for i in range(min(batch, 4)):
            keys = kv[table[i, : pages[i]].long()].reshape(-1, 576)[: lengths[i]].double()
            want = (q[i].double() @ keys.T * 0.06).softmax(-1) @ keys[:, :512]
            wrong = max(wrong, error(found[i], want))
        times, flops = None, 2 * heads * sum(lengths) * (576 + 512)
        if timing:
            bytes_ = sum(lengths) * 576 * 2 + q.numel() * 2 + parts.numel() * 4
            bound = max(bytes_ / COPY_BANDWIDTH, flops / 780e12) * 1e6
            ours, narrow = timed(call, made(BN=64))
            print(f"    in blocks of 64 keys: {narrow:.1f} us")
            times = [ours, bound]
        rows.append(row("mla_decode / bound", (batch, heads, lengths[0], splits), wrong, 8e-3, times, flops))
    return rows


def decode(quick: bool) -> list[Row]:
    """One new token a sequence, 32 heads in 8 groups of keys, in pages; theirs is the bandwidth bound of the keys."""
    rows = []
    cases = [(3, [70, 1, 333], 16, False), (128, [2048] * 128, 16, True)] + (
        []
        if quick
        else [(64, [8192] * 64, 64, True), (16, [16384] * 16, 16, True), (8, [32768] * 8, 64, True)]
    )
    for batch, lengths, page, timing in cases:
        pages = [-(-n // page) for n in lengths]
        k, v = (torch.randn(sum(pages) + 1, page, 8, 128, device="cuda", dtype=torch.bfloat16) for _ in "kv")
        q = torch.randn(batch, 32, 128, device="cuda", dtype=torch.bfloat16)
        table = torch.full((batch, max(pages)), 10**6, dtype=torch.int32)
        order, at = torch.randperm(sum(pages)).int(), 0
        for i, count in enumerate(pages):
            table[i, :count] = order[at : at + count]
            at += count
        table, counts = table.cuda(), torch.tensor(lengths, dtype=torch.int32, device="cuda")
        out, calls, wrong, names = torch.empty_like(q), [], 0.0, []
        for keys, stages in ((64, 3), (64, 2), (128, 2)) if timing else ((64, 3),):
            for waves in (2, 4, 8) if timing else (2,):
                splits = max(1, -(-132 * waves // (batch * 8)))
                name = f"{keys} x {stages}, {splits} splits"
                if name in names:
                    continue
                parts = torch.full((batch, splits, 32, 128), math.nan, device="cuda")
                sums = torch.full((batch, splits, 32), math.nan, device="cuda")
                first = prepared(
                    paged_decode,
                    q,
                    k,
                    v,
                    table,
                    counts,
                    0.09,
                    out=(parts, sums),
                    splits=splits,
                    BN=keys,
                    stages=stages,
                )
                second = prepared(combine, parts, sums, q, out=out)
                out.fill_(math.nan)
                each([first, second])
                torch.cuda.synchronize()
                for i in range(min(batch, 3)):
                    flat = [
                        x[table[i, : pages[i]].long()].reshape(-1, 8, 128)[: lengths[i]].double()
                        for x in (k, v)
                    ]
                    wide = [x.repeat_interleave(4, 1) for x in flat]
                    scores = torch.einsum("hd,khd->hk", q[i].double(), wide[0]) * 0.09
                    wrong = max(wrong, error(out[i], torch.einsum("hk,khd->hd", scores.softmax(-1), wide[1])))
                calls.append(partial(each, [first, second]))
                names.append(name)
        times = None
        if timing:
            found = timed(*calls)
            best = min(range(len(found)), key=lambda i: found[i])
            bound = (sum(lengths) * 2 * 8 * 128 * 2 + 2 * q.numel() * 2) / COPY_BANDWIDTH * 1e6
            times = [found[best], bound]
            print("   ", *(f"{name}: {x:.1f};" for name, x in zip(names, found, strict=True)))
        rows.append(row("paged_decode and combine / bound", (batch, lengths[0], page), wrong, 8e-3, times))
    return rows


def attention_backward(quick: bool) -> list[Row]:
    """dQ, dK, dV from the saved log-sum-exps; theirs is cuDNN's backward pass."""
    rows = []
    aten = torch.ops.aten
    for b, s, h, causal in [(1, 300, 2, True)] + [
        (*x, causal) for x in ([(2, 8192, 16)] if quick else [(4, 4096, 16), (2, 8192, 16), (1, 16384, 16)])
        for causal in (False, True)
    ]:  # fmt: skip
        q, k, v, dy = (torch.randn(b, s, h, 128, device="cuda", dtype=torch.bfloat16) for _ in "qkvd")
        y, lse = torch.empty_like(q), torch.empty(b, h, s, device="cuda")
        scale = 128**-0.5
        prepared(attention, q, k, v, scale, out=(y, lse), causal=causal)()
        delta = torch.empty_like(lse)
        dq, dk, dv = (torch.full_like(q, math.nan) for _ in "qkv")
        parts = [
            prepared(attention_delta, y, dy, out=delta),
            prepared(attention_backward_keys, q, k, v, dy, lse, delta, scale, out=(dk, dv), causal=causal),
            prepared(attention_backward_queries, q, k, v, dy, lse, delta, scale, out=dq, causal=causal),
        ]
        each(parts)
        turned = [x.transpose(1, 2) for x in (q, k, v, dy)]
        if s < 1000:
            leaves = [x.double().requires_grad_() for x in turned[:3]]
            made = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=causal)
            want = torch.autograd.grad(made, leaves, turned[3].double())
            other = None
        else:
            out, sums, *rest = aten._scaled_dot_product_cudnn_attention(
                *turned[:3], None, True, 0.0, causal, False
            )
            _, _, longest_q, longest_k, seed, offset, _ = rest
            other = partial(
                aten._scaled_dot_product_cudnn_attention_backward, turned[3], *turned[:3], out, sums, seed, offset,
                None, None, None, longest_q, longest_k, 0.0, causal,
            )  # fmt: skip
            want = other()
        found = [x.transpose(1, 2) for x in (dq, dk, dv)]
        wrong = max(error(x, y) for x, y in zip(found, want, strict=True))
        work = torch.full((b, s, h, 128), math.nan, device="cuda")
        at_once = tuple(torch.full_like(q, math.nan) for _ in "qkv")
        one = prepared(
            attention_backward_at_once, q, k, v, y, dy, lse, scale, out=(*at_once, work, delta), causal=causal
        )
        one()
        apart = max(error(x.transpose(1, 2), y) for x, y in zip(at_once, want, strict=True))
        times = one_times = None
        if other is not None:
            one_us, two_us, other_us, *each_us = timed(one, partial(each, parts), other, *parts)
            one_times, times = [one_us, other_us], [two_us, other_us]
            print("    delta, keys, queries:", *(f"{x:.1f}" for x in each_us))
        flops = 10 * b * h * s * s * 128 * (0.5 if causal else 1)
        name = f"attention backward causal={causal}"
        rows.append(row(f"{name}, two passes / cuDNN", (b, s, h), wrong, 1.5e-2, times, flops))
        rows.append(row(f"{name}, one pass / cuDNN", (b, s, h), apart, 1.5e-2, one_times, flops))
    return rows


DEEPGEMM = {  # TFLOP/s that its README gives for an H800, March 2025: plain at 4096 rows, and groups of rows
    (1, 4096, 2112, 7168): 1058, (1, 4096, 24576, 1536): 990, (1, 4096, 32768, 512): 590, (1, 4096, 7168, 16384): 1358,
    (1, 4096, 4096, 7168): 1304, (1, 4096, 7168, 2048): 1025, (4, 8192, 4096, 7168): 1297, (4, 8192, 7168, 2048): 1099,
    (8, 4096, 4096, 7168): 1288, (8, 4096, 7168, 2048): 1093,
}  # fmt: skip


BLOCK_TILES = ((128, 128, 6), (192, 128, 4), (128, 256, 4))  # rows, columns, stages


def block_scales(quick: bool) -> list[Row]:
    """fp8 with scales of 1 x 128 and 128 x 128, one matrix and groups of rows; theirs is DeepGEMM's published figure."""
    rows = []
    cases = [((1, 300, 264, 520), 0), ((3, 150, 264, 520), 0), *DEEPGEMM.items()]
    for (groups, m, n, k), published in cases[:4] if quick else cases:
        t, kb, nb = groups * m, -(-k // 128), -(-n // 128)
        x, w = (
            torch.randn(*shape, device="cuda").to(torch.float8_e4m3fn) for shape in ((t, k), (groups, n, k))
        )
        sx, sw = torch.rand(t, kb, device="cuda") + 0.5, torch.rand(groups, nb, kb, device="cuda") + 0.5
        y = torch.full((t, n), math.nan, device="cuda", dtype=torch.bfloat16)
        ends = torch.arange(groups + 1, device="cuda", dtype=torch.int32) * m
        kernel = gemm_fp8 if groups == 1 else grouped_gemm_fp8
        given = (x, w[0], sx, sw[0], 1.0) if groups == 1 else (x, sx, w, sw, ends)
        wide = []
        for g in range(groups):
            part = slice(g * m, (g + 1) * m)
            wide_x = x[part].float() * sx[part].repeat_interleave(128, 1)[:, :k]
            wide_w = w[g].float() * sw[g].repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
            wide.append(wide_x @ wide_w.T)
        calls, wrong = [], 0.0
        for rows_, columns, stages in BLOCK_TILES:
            y.fill_(math.nan)
            calls.append(prepared(kernel, *given, out=y, BM=rows_, BN=columns, stages=stages))
            calls[-1]()
            wrong = max(wrong, *(error(y[g * m : (g + 1) * m], one) for g, one in enumerate(wide)))
        flops = 2 * t * n * k
        found = timed(*calls) if published else []
        times = [min(found), flops / published / 1e6] if published else None
        if found:
            print("   ", *(f"{chosen}: {x:.1f}" for chosen, x in zip(BLOCK_TILES, found, strict=True)))
        rows.append(
            row(f"{kernel.__name__} block scales / DeepGEMM", (groups, m, n, k), wrong, 1e-2, times, flops)
        )
    return rows


def every_case(quick: bool) -> list[Row]:
    """Each kernel's trials, on the card."""
    rows = []
    for name, case in CASES.items():
        for number in range(1 if quick else 3):
            trial = case.trial(Draw(f"{name} device {number}"))
            moved = [x.cuda() if isinstance(x, torch.Tensor) else x for x in trial.arguments]
            try:
                found = case.kernel(*moved, **trial.constants)
                found = tuple(x.cpu() for x in found) if isinstance(found, tuple) else found.cpu()
                wrong = trial.error(found)
            except Exception as problem:
                wrong = math.inf
                print(f"    {name}: {type(problem).__name__}: {problem}")
            # fast exponentials and divisions of the card: a little over what a CPU gives
            limit = max(trial.tolerance, 2e-5) if trial.tolerance else 0.0
            if wrong > limit or number == 0:
                rows.append(row(f"trial of {name}", number, wrong, limit))
    return rows


def norm(quick: bool) -> list[Row]:
    rows = []
    for n, d in [(100, 4096), (33, 100), (7, 65)] + ([] if quick else [(16384, 4096), (16384, 8192)]):
        x, w = (
            torch.randn(n, d, device="cuda", dtype=torch.bfloat16),
            torch.randn(d, device="cuda", dtype=torch.bfloat16),
        )
        y = torch.full_like(x, math.nan)
        call = prepared(rms_norm, x, w, 1e-5, out=y)
        call()
        want = torch.nn.functional.rms_norm(x.double(), (d,), w.double(), 1e-5)
        times = None
        if n > 1000:
            times = timed(call, partial(torch.nn.functional.rms_norm, x, (d,), w, 1e-5))
        rows.append(row("rms_norm / torch", (n, d), error(y, want), 5e-3, times))
    return rows


@tile.kernel
def nothing(X: tile.Tensor) -> Any:
    """Writes one number."""
    for _ in tile.grid(1, threads=32):
        X[0] = 1.0


def launch(quick: bool) -> list[Row]:
    """Host time of the driver's own launch of a kernel, of one with everything bound, and of calls through the public
    door: of one tensor, and of three with a number."""
    x = torch.zeros(8, device="cuda")
    a, w = (torch.randn(16, 64, device="cuda", dtype=torch.bfloat16) for _ in "aw")
    y = torch.empty_like(a)
    w = w[0].contiguous()
    direct = prepared_in_place(nothing, x)
    direct()
    ((config, function, arguments),) = next(iter(direct.compiled.ready.values()))
    start = driver.driver().cuLaunchKernelEx
    out: Row = {"name": "launch, host us", "shape": "one store"}
    for name, call in (
        ("driver_us", lambda: start(config, function, arguments, None)),
        ("bound_us", direct),
        ("theirs_us", lambda: x.fill_(1.0)),
        ("ours_us", lambda: nothing(x)),
        ("three_us", lambda: rms_norm(a, w, 1e-5, out=y)),
        ("three_new_us", lambda: rms_norm(a, w, 1e-5)),
    ):
        for _ in range(200):
            call()
        torch.cuda.synchronize()
        laps = []
        for _ in range(20):
            begin = time.perf_counter()
            for _ in range(100):
                call()
            laps.append((time.perf_counter() - begin) * 1e4)
            torch.cuda.synchronize()
        out[name] = statistics.median(laps)
    out["problem"] = ", ".join(f"{key} {value:.2f}" for key, value in out.items() if key.endswith("us"))
    show(out)
    return [out]


def prepared_in_place(kernel: Any, *args: Any) -> "Prepared":
    return prepared(kernel, *args, out=())


def compiling(quick: bool) -> list[Row]:
    """Cold: from Python source to machine code, no cache."""
    spec, rows = tile.Spec, []
    b = tile.bf16
    heads = spec((2, 4096, 16, 128), b)
    cases: list[tuple[str, Any]] = [
        ("gemm", lambda: gemm_nt.on("sm_90a").lowered(spec((4096, 4096), b), spec((4096, 4096), b))),
        ("attention", lambda: attention.on("sm_90a").lowered(heads, heads, heads, 0.1, causal=True)),
    ]
    for name, make in cases:
        start = time.perf_counter()
        function = make()
        source = compile_function(function).source
        # NVRTC keeps what it compiled: another name makes it work again.
        source = source.replace(f"{function.name}_0", f"{function.name}_{time.time_ns()}")
        middle = time.perf_counter()
        _, log = compile_text(source, "sm_90a")
        end = time.perf_counter()
        spills = [line.strip() for line in log.splitlines() if "spill" in line or "(C7" in line]
        out: Row = {"name": f"cold compile of {name}", "shape": "", "ours_us": (end - start) * 1e6}
        out["problem"] = f"of it NVRTC {end - middle:.2f} s; {'; '.join(spills)}"
        show(out)
        rows.append(out)
    return rows


PARTS: dict[str, Callable[[bool], list[Row]]] = {
    "gemm": gemm, "fp8": fp8, "blocks": block_scales, "thin": thin, "attention": attention_forward,
    "backward": attention_backward, "mla": mla, "decode": decode, "norm": norm, "older": older,
    "cases": every_case, "launch": launch, "compile": compiling,
}  # fmt: skip
