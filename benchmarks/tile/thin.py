"""Products of few rows, in the schedules that might suit them."""

import math
from functools import partial
from typing import Any

import torch
from measuring import COPY_BANDWIDTH, Row, each, error, prepared, row, timed

from mortice.ops.kernels.gemm import gemm_nt
from mortice.ops.kernels.gemm_thin import gemm_thin, gemm_thin_split
from mortice.ops.kernels.gemv import gemv


def thin(quick: bool) -> list[Row]:
    """Few rows, operands not in the cache. Theirs is the better of cuBLAS and the time to move operands and result once at
    the card's measured copy bandwidth; cuBLAS alone stands beside it. Ours is the best of a few schedules."""
    rows = []
    for n, k in (
        [(8192, 8192)] if quick else [(12288, 4096), (4096, 4096), (22016, 4096), (4096, 11008), (8192, 8192)]
    ):
        for m in (1, 16, 64, 128):
            sets = [
                [torch.randn(x, k, device="cuda", dtype=torch.bfloat16) for x in (m, n)]
                for _ in range(max(4, -(-(2**28) // (n * k * 2))))
            ]
            outs = [torch.full((m, n), math.nan, device="cuda", dtype=torch.bfloat16) for _ in sets]
            calls, wrong = [], []
            for kernel, constants in THIN[m]:
                extra = (
                    (torch.empty(constants["splits"], m, n, device="cuda"),) if "splits" in constants else ()
                )
                ours = [
                    prepared(kernel, a, b, out=(c, *extra), **constants)
                    for (a, b), c in zip(sets, outs, strict=True)
                ]
                for c in outs:
                    c.fill_(math.nan)
                each(ours)
                wrong.append(
                    max(error(c, a.float() @ b.float().T) for (a, b), c in zip(sets, outs, strict=True))
                )
                calls.append(ours)
            others = [partial(torch.matmul, a, b.T) for a, b in sets]
            times = [x / len(sets) for x in timed(partial(each, others), *(partial(each, x) for x in calls))]
            best = min(range(len(calls)), key=lambda i: times[1 + i])
            bound = 2 * (m * k + n * k + m * n) / COPY_BANDWIDTH * 1e6
            name = f"{THIN[m][best][0].__name__} {tuple(THIN[m][best][1].values())}"
            made = row(f"thin {name}", (m, n, k), max(wrong), 5e-3, [times[1 + best], min(times[0], bound)])
            made |= {"copy_bound_us": bound, "cublas_us": times[0], "of_cublas": times[0] / times[1 + best]}
            made["all_us"] = dict(
                zip((f"{x.__name__} {tuple(y.values())}" for x, y in THIN[m]), times[1:], strict=True)
            )
            print(f"    cuBLAS {times[0]:.1f} us, {made['of_cublas']:.3f}; bound {bound:.1f} us; all", *(
                f"{x:.1f}" for x in times[1:]))  # fmt: skip
            rows.append(made)
    return rows


def thin_nt(*shape: int) -> tuple[Any, dict[str, int]]:
    return gemm_nt, dict(zip(("BM", "BN", "BK", "stages"), shape, strict=True))


def thin_swapped(*shape: int) -> tuple[Any, dict[str, int]]:
    return gemm_thin, dict(zip(("BM", "BN", "BK", "stages"), shape, strict=True))


def thin_split(splits: int, *shape: int) -> tuple[Any, dict[str, int]]:
    return gemm_thin_split, dict(zip(("splits", "BM", "BN", "BK", "stages"), (splits, *shape), strict=True))


def thin_vector(*shape: int) -> tuple[Any, dict[str, int]]:
    return gemv, dict(zip(("rows", "BK", "threads"), shape, strict=True))


THIN: dict[int, list[tuple[Any, dict[str, int]]]] = {
    1: [
        thin_vector(4, 1024, 128), thin_vector(4, 512, 128), thin_vector(8, 512, 128), thin_vector(8, 1024, 256),
        thin_split(3, 8, 64, 128, 6),
        thin_swapped(8, 64, 128, 6), thin_swapped(8, 64, 128, 10), thin_split(2, 8, 64, 128, 6),
    ],
    16: [
        thin_swapped(16, 64, 128, 5), thin_swapped(16, 64, 64, 11), thin_swapped(16, 64, 256, 2),
        thin_swapped(16, 64, 128, 10), thin_swapped(16, 128, 64, 10), thin_split(2, 16, 64, 128, 5),
        thin_split(4, 16, 64, 128, 5), thin_split(3, 16, 64, 64, 11),
    ],
    64: [
        thin_nt(64, 64, 64, 12), thin_nt(64, 64, 128, 6), thin_nt(64, 96, 64, 8), thin_nt(64, 176, 64, 6),
        thin_swapped(64, 64, 64, 7), thin_swapped(64, 64, 128, 3), thin_swapped(64, 128, 64, 9),
        thin_swapped(32, 64, 64, 9), thin_split(2, 64, 64, 64, 7), thin_split(2, 64, 128, 64, 8),
    ],
    128: [
        thin_nt(128, 64, 64, 8), thin_nt(128, 96, 64, 7), thin_nt(128, 128, 64, 6), thin_nt(128, 176, 64, 5),
        thin_nt(64, 64, 64, 12), thin_nt(64, 128, 64, 8), thin_swapped(128, 64, 64, 4), thin_swapped(128, 128, 64, 7),
        thin_split(2, 128, 128, 64, 7), thin_split(4, 128, 128, 64, 7),
    ],
}  # fmt: skip
