"""Our GEMM and attention beside TileLang's and the vendor's, in one run on a GPU.

    python3 benchmarks/tile/against_tilelang.py [--json OUT]

Needs TileLang 0.1.15 on the path; it is a tool of this measurement and nothing else. Its kernels are written as its papers
write theirs, GEMM in three tilings of which the best counts. Launches are timed one by one with events, no graphs.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import tilelang
import tilelang.language as T
import torch
from on_cuda import error, prepared

from mortice.ops.kernels.attention import attention
from mortice.ops.kernels.gemm import gemm_nt

LOG2E = math.log2(math.e)
BF16, F32 = "bfloat16", "float32"


def their_gemm(m: int, n: int, k: int, bm: int, bn: int, bk: int, stages: int, threads: int) -> Any:
    @T.prim_func
    def main(A: T.Tensor((m, k), BF16), B: T.Tensor((n, k), BF16), C: T.Tensor((m, n), BF16)):  # type: ignore[valid-type]
        with T.Kernel(T.ceildiv(n, bn), T.ceildiv(m, bm), threads=threads) as (bx, by):
            a = T.alloc_shared((bm, bk), BF16)
            b = T.alloc_shared((bn, bk), BF16)
            c = T.alloc_fragment((bm, bn), F32)
            T.use_swizzle(8)
            T.clear(c)
            for ko in T.Pipelined(T.ceildiv(k, bk), num_stages=stages):
                T.copy(A[by * bm, ko * bk], a)
                T.copy(B[bx * bn, ko * bk], b)
                T.gemm(a, b, c, transpose_B=True)
            T.copy(c, C[by * bm, bx * bn])

    return tilelang.compile(main, target="cuda")


def their_attention(batch: int, seq: int, heads: int, causal: bool) -> Any:
    dim, bm, bn = 128, 128, 128
    scale = dim**-0.5 * LOG2E
    shape = (batch, seq, heads, dim)

    @T.prim_func
    def main(
        Q: T.Tensor(shape, BF16),  # type: ignore[valid-type]
        K: T.Tensor(shape, BF16),  # type: ignore[valid-type]
        V: T.Tensor(shape, BF16),  # type: ignore[valid-type]
        O: T.Tensor(shape, BF16),  # type: ignore[valid-type]  # noqa: E741
    ):
        with T.Kernel(T.ceildiv(seq, bm), heads, batch, threads=256) as (bx, by, bz):
            q = T.alloc_shared((bm, dim), BF16)
            k = T.alloc_shared((bn, dim), BF16)
            v = T.alloc_shared((bn, dim), BF16)
            s = T.alloc_fragment((bm, bn), F32)
            p = T.alloc_fragment((bm, bn), BF16)
            o = T.alloc_fragment((bm, dim), F32)
            top = T.alloc_fragment((bm,), F32)
            before = T.alloc_fragment((bm,), F32)
            shrink = T.alloc_fragment((bm,), F32)
            part = T.alloc_fragment((bm,), F32)
            total = T.alloc_fragment((bm,), F32)
            T.copy(Q[bz, bx * bm : (bx + 1) * bm, by, :], q)
            T.fill(o, 0)
            T.fill(total, 0)
            T.fill(top, -T.infinity(F32))
            for j in T.Pipelined(T.ceildiv((bx + 1) * bm if causal else seq, bn), num_stages=2):
                T.copy(K[bz, j * bn : (j + 1) * bn, by, :], k)
                if causal:
                    for x, y in T.Parallel(bm, bn):
                        s[x, y] = T.if_then_else(bx * bm + x >= j * bn + y, 0, -T.infinity(F32))
                else:
                    T.clear(s)
                T.gemm(q, k, s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                T.copy(V[bz, j * bn : (j + 1) * bn, by, :], v)
                T.copy(top, before)
                T.reduce_max(s, top, dim=1, clear=False)
                for x in T.Parallel(bm):
                    top[x] = T.max(top[x], before[x])
                for x in T.Parallel(bm):
                    shrink[x] = T.exp2(before[x] * scale - top[x] * scale)
                for x, y in T.Parallel(bm, bn):
                    s[x, y] = T.exp2(s[x, y] * scale - top[x] * scale)
                T.reduce_sum(s, part, dim=1)
                for x in T.Parallel(bm):
                    total[x] = total[x] * shrink[x] + part[x]
                T.copy(s, p)
                for x, y in T.Parallel(bm, dim):
                    o[x, y] *= shrink[x]
                T.gemm(p, v, o, policy=T.GemmWarpPolicy.FullRow)
            for x, y in T.Parallel(bm, dim):
                o[x, y] /= total[x]
            T.copy(o, O[bz, bx * bm : (bx + 1) * bm, by, :])

    return tilelang.compile(main, target="cuda")


def timed(calls: list[Callable[[], Any]], rounds: int = 25) -> list[float]:
    """Median microseconds of each, interleaved."""
    times: list[list[float]] = [[] for _ in calls]
    for turn in range(rounds + 5):
        for i, call in enumerate(calls):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            call()
            end.record()
            end.synchronize()
            if turn >= 5:
                times[i].append(begin.elapsed_time(end) * 1e3)
    return [statistics.median(x) for x in times]


def gemm_rows() -> list[dict[str, Any]]:
    rows = []
    for m, n, k in [(4096,) * 3, (8192,) * 3, (4096, 8192, 8192), (8192, 8192, 28672)]:
        a, b = (torch.randn(x, k, device="cuda", dtype=torch.bfloat16) for x in (m, n))
        ours, theirs = (torch.full((m, n), math.nan, device="cuda", dtype=torch.bfloat16) for _ in "ot")
        began = time.perf_counter()
        found = [
            their_gemm(m, n, k, *x)
            for x in ((128, 256, 64, 4, 256), (128, 256, 64, 3, 256), (256, 128, 64, 3, 256))
        ]
        spent = (time.perf_counter() - began) / len(found)
        calls = [
            prepared(gemm_nt, a, b, out=ours),
            partial(torch.matmul, a, b.T),
            *(partial(x, a, b, theirs) for x in found),
        ]
        times = timed(calls)
        rows.append(report("gemm", (m, n, k), times, 2 * m * n * k, error(ours, theirs), spent))
    return rows


def attention_rows() -> list[dict[str, Any]]:
    rows = []
    for b, s, h in [(4, 4096, 16), (2, 8192, 16)]:
        for causal in (False, True):
            q, k, v = (torch.randn(b, s, h, 128, device="cuda", dtype=torch.bfloat16) for _ in "qkv")
            ours, theirs, sums = torch.empty_like(q), torch.empty_like(q), torch.empty(b, h, s, device="cuda")
            began = time.perf_counter()
            found = their_attention(b, s, h, causal)
            spent = time.perf_counter() - began
            turned = [x.transpose(1, 2) for x in (q, k, v)]
            vendor = partial(torch.nn.functional.scaled_dot_product_attention, *turned, is_causal=causal)
            with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION):
                times = timed([
                    prepared(attention, q, k, v, 128**-0.5, out=(ours, sums), causal=causal), vendor,
                    partial(found, q, k, v, theirs),
                ])  # fmt: skip
            flops = 4 * b * h * s * s * 128 * (0.5 if causal else 1)
            rows.append(
                report(f"attention causal={causal}", (b, s, h), times, flops, error(ours, theirs), spent)
            )
    return rows


def report(
    name: str, shape: Any, times: list[float], flops: float, difference: float, spent: float
) -> dict[str, Any]:
    best = min(times[2:])
    out = {
        "name": name, "shape": shape, "ours_us": times[0], "vendor_us": times[1], "tilelang_us": best,
        "tflops": flops / times[0] / 1e6, "over_tilelang": best / times[0], "over_vendor": times[1] / times[0],
        "difference": difference, "tilelang_compile_s": spent, "right": difference <= 1e-2,
    }  # fmt: skip
    print(
        f"{name:24} {shape!s:22} ours {out['tflops']:.0f} TFLOP/s, TileLang {flops / best / 1e6:.0f}, vendor "
        f"{flops / times[1] / 1e6:.0f}; over TileLang {out['over_tilelang']:.3f}, over the vendor "
        f"{out['over_vendor']:.3f}; difference {difference:.1e}; its compile {spent:.1f} s", flush=True,
    )  # fmt: skip
    return out


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tilelang.disable_cache()
    rows = gemm_rows() + attention_rows()
    if options.json:
        figures = {"device": torch.cuda.get_device_name(), "tilelang": tilelang.__version__, "rows": rows}
        options.json.write_text(json.dumps(figures, indent=1))
    return 0 if all(row["right"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
