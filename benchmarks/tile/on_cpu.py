"""The kernels of `mortice.ops.kernels` beside torch on a CPU, as ratios (above 1: ours is faster).

Rounds are interleaved, so that both sides see the same neighbours; the ratio is that of the medians. By the clock "thread"
one thread's own processor time counts instead, which a busy machine hardly changes.
"""

import ctypes
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from mortice import tile
from mortice.ops.kernels.attention import attention
from mortice.ops.kernels.elementwise import geglu, rotary, swiglu
from mortice.ops.kernels.gemm import gemm_nt
from mortice.ops.kernels.gemv import gemv, gemv_int4, gemv_int8
from mortice.ops.kernels.norm import rms_norm
from mortice.ops.linear import PackedWeight, PanelWeight

Row = dict[str, Any]
Call = Callable[[], Any]


def measured(ours: Call, theirs: Call, rounds: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Medians in seconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for round_ in range(rounds + 2):
        for call, kept in zip((ours, theirs), times, strict=True):
            start = clock()
            call()
            if round_ >= 2:
                kept.append(clock() - start)
    return statistics.median(times[0]), statistics.median(times[1])


def gemm_pair(n: int, dtype: torch.dtype) -> tuple[Call, Call]:
    a, b, c = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype), torch.empty(n, n, dtype=dtype)
    return lambda: gemm_nt(a, b, out=c), lambda: torch.matmul(a, b.T, out=c)


def attention_pair(s: int, causal: bool, dtype: torch.dtype) -> tuple[Call, Call]:
    q, k, v = (torch.randn(1, s, 8, 64).to(dtype) for _ in range(3))
    turned = [x.transpose(1, 2) for x in (q, k, v)]
    return (
        lambda: attention(q, k, v, 0.125, causal=causal),
        lambda: F.scaled_dot_product_attention(turned[0], turned[1], turned[2], is_causal=causal),
    )


def rms_norm_pair(dtype: torch.dtype) -> tuple[Call, Call]:
    x, w = torch.randn(2048, 2048).to(dtype), torch.randn(2048).to(dtype)
    return lambda: rms_norm(x, w, 1e-5), lambda: F.rms_norm(x, (2048,), w, 1e-5)


def swiglu_pair(dtype: torch.dtype) -> tuple[Call, Call]:
    x = torch.randn(1024, 2 * 4096).to(dtype)

    def eager() -> torch.Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    return lambda: swiglu(x), eager


def rotary_pair(dtype: torch.dtype) -> tuple[Call, Call]:
    x, angles = torch.randn(1024, 16, 128).to(dtype), torch.randn(1024, 64)
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)

    def eager() -> torch.Tensor:
        a, b = x.chunk(2, -1)
        c, s = cos[:, None], sin[:, None]
        return torch.cat([a * c - b * s, b * c + a * s], -1)

    return lambda: rotary(x, cos, sin), eager


def gemv_pair(dtype: torch.dtype) -> tuple[Call, Call]:
    x, w = torch.randn(1, 4096).to(dtype), torch.randn(4096, 4096).to(dtype)
    return lambda: gemv(x, w), lambda: F.linear(x, w)


def int8_pair() -> tuple[Call, Call]:
    x, w = torch.randn(1, 4096).bfloat16(), torch.randint(-127, 128, (4096, 4096), dtype=torch.int8)
    scale = torch.rand(4096)
    narrow = scale.bfloat16()
    return lambda: gemv_int8(x, w, scale), lambda: torch._weight_int8pack_mm(x, w, narrow)


def int4_pair() -> tuple[Call, Call]:
    """Beside the same product in bf16: torch's own order of 4-bit weights is private to it."""
    x, w = torch.randn(1, 4096).bfloat16(), torch.randint(0, 256, (4096, 2048), dtype=torch.uint8)
    scale, zero, wide = torch.rand(4096, 128), torch.rand(4096, 128), torch.randn(4096, 4096).bfloat16()
    return lambda: gemv_int4(x, w, scale, zero), lambda: F.linear(x, wide)


def panels_pair(rows: int) -> tuple[Call, Call]:
    """The engine's weights in panels beside its weights in oneDNN's order."""
    x, w = torch.randn(rows, 4096).bfloat16(), torch.randn(4096, 4096).bfloat16()
    ours, theirs = PanelWeight(w), PackedWeight(w)
    return lambda: ours.product(x, None), lambda: theirs.product(x, None)


@tile.kernel
def matmul(A: tile.Tensor, B: tile.Tensor) -> Any:
    """Level 1: no tiles, no schedule."""
    M, K = A.shape
    K, N = B.shape
    C = tile.empty((M, N), A.dtype)
    for m, n in tile.parallel(M, N):
        C[m, n] = tile.sum(A[m, k] * B[k, n] for k in range(K))
    return C


def level_one_pair(m: int, n: int, dtype: torch.dtype) -> tuple[Call, Call]:
    a, b, c = torch.randn(m, n).to(dtype), torch.randn(n, n).to(dtype), torch.empty(m, n, dtype=dtype)
    return lambda: matmul(a, b, out=c), lambda: torch.matmul(a, b, out=c)


def geglu_pair(dtype: torch.dtype) -> tuple[Call, Call]:
    x = torch.randn(256, 2 * 2048).to(dtype)

    def eager() -> torch.Tensor:
        gate, up = x.chunk(2, -1)
        return F.gelu(gate, approximate="tanh").mul_(up)

    return lambda: geglu(x), eager


@tile.kernel
def nearly_nothing(X: tile.Tensor, Y: tile.Tensor, Z: tile.Tensor, a: float) -> None:
    (N,) = X.shape
    (N,) = Y.shape
    (N,) = Z.shape
    for i in tile.grid(min(N, 1)):
        Z[i] = a


def launch_row(rounds: int) -> Row:
    """A call from Python with three tensors and a number, and the compiled function called with ready addresses."""
    x, y, z = (torch.zeros(8) for _ in range(3))
    nearly_nothing(x, y, z, 1.0)
    made: Any = nearly_nothing.compiled(x, y, z, 1.0)
    sizes, values = (ctypes.c_int64 * 1)(8), [t.data_ptr() for t in (x, y, z)]

    def thousand(call: Call) -> Call:
        def run() -> None:
            for _ in range(1000):
                call()

        return run

    ours, empty = measured(
        thousand(lambda: nearly_nothing(x, y, z, 3.0)),
        thousand(lambda: made.entry(*values, 3.0, sizes, 1)),
        rounds,
        time.thread_time,
    )
    return {
        "name": "launch over an empty kernel",
        "ours_us": ours * 1e3,
        "empty_us": empty * 1e3,
        "over_us": (ours - empty) * 1e3,
    }


def rows(rounds: int, clock: Callable[[], float]) -> list[Row]:
    pairs: dict[str, tuple[Call, Call]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        short = str(dtype).removeprefix("torch.")
        for n in (1024, 2048):
            pairs[f"gemm {n} {short}"] = gemm_pair(n, dtype)
        for causal in (False, True):
            pairs[f"attention 1x1024x8x64 {'causal' if causal else 'full'} {short}"] = attention_pair(
                1024, causal, dtype
            )
        pairs[f"rms_norm 2048x2048 {short}"] = rms_norm_pair(dtype)
        pairs[f"swiglu 1024x4096 {short}"] = swiglu_pair(dtype)
        pairs[f"rotary 1024x16x128 {short}"] = rotary_pair(dtype)
        pairs[f"geglu 256x2048 {short}"] = geglu_pair(dtype)
        pairs[f"level 1 product 2048 {short}"] = level_one_pair(2048, 2048, dtype)
        pairs[f"level 1 product 32x2048x2048 {short}"] = level_one_pair(32, 2048, dtype)
        pairs[f"gemv 4096x4096 {short}"] = gemv_pair(dtype)
    pairs["gemv int8 4096x4096"] = int8_pair()
    pairs["gemv int4 4096x4096, torch in bf16"] = int4_pair()
    for m in (1, 8, 64, 512):
        pairs[f"weights in panels {m}x4096x4096 bfloat16"] = panels_pair(m)
    found: list[Row] = []
    for name, (ours, theirs) in pairs.items():
        mine, other = measured(ours, theirs, rounds, clock)
        found.append({"name": name, "ours_ms": mine * 1e3, "torch_ms": other * 1e3, "ratio": other / mine})
        print(
            f"{name:44} ours {mine * 1e3:8.3f} ms  torch {other * 1e3:8.3f} ms  ratio {other / mine:.2f}",
            flush=True,
        )
    return found


def run(rounds: int, clock: str) -> dict[str, Any]:
    """What ran where, and a row a kernel."""
    torch.manual_seed(0)
    if clock == "thread":
        torch.set_num_threads(1)
    found = rows(rounds, time.thread_time if clock == "thread" else time.perf_counter)
    found.append(launch_row(rounds))
    print(f"launch: {found[-1]['over_us']:.2f} us over {found[-1]['empty_us']:.2f} us")
    about = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "clock": clock,
    }
    return {"about": about, "rows": found}
