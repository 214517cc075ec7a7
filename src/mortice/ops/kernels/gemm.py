"""Matrix products."""

from typing import Any

from mortice import tile

SCHEDULE = {"BM": 256, "BN": 512, "BK": 256}  # of a CPU: operands for its second cache
CHOICES = {"BM": (64, 128, 256), "BN": (128, 256, 512), "BK": (64, 128, 256)}


@tile.kernel(cpu=SCHEDULE, choices=CHOICES)
def gemm_nt(
    A: tile.Tensor, B: tile.Tensor, *, BM: int = 128, BN: int = 256, BK: int = 64, stages: int = 4
) -> Any:
    """C [M, N] = A [M, K] @ B [N, K]^T, accumulated in f32, C of A's type."""
    M, K = A.shape
    N, K = B.shape
    C = tile.empty((M, N), A.dtype)
    for bm, bn in tile.grid(tile.ceildiv(M, BM), tile.ceildiv(N, BN), panel=8):
        a = tile.shared((BM, BK), A.dtype)
        b = tile.shared((BN, BK), B.dtype)
        c = tile.fragment((BM, BN), tile.f32, fill=0)
        for k in tile.pipelined(tile.ceildiv(K, BK), stages=stages):
            tile.copy(A[bm * BM :, k * BK :], a)
            tile.copy(B[bn * BN :, k * BK :], b)
            tile.gemm(a, b.T, c)
        tile.copy(c, C[bm * BM :, bn * BN :])
    return C


@tile.kernel(cpu=SCHEDULE, choices=CHOICES)
def gemm_nn(
    A: tile.Tensor, B: tile.Tensor, *, BM: int = 128, BN: int = 256, BK: int = 64, stages: int = 4
) -> Any:
    """C [M, N] = A [M, K] @ B [K, N]."""
    M, K = A.shape
    K, N = B.shape
    C = tile.empty((M, N), A.dtype)
    for bm, bn in tile.grid(tile.ceildiv(M, BM), tile.ceildiv(N, BN), panel=8):
        a, b = tile.shared((BM, BK), A.dtype), tile.shared((BK, BN), B.dtype)
        c = tile.fragment((BM, BN), tile.f32, fill=0)
        for k in tile.pipelined(tile.ceildiv(K, BK), stages=stages):
            tile.copy(A[bm * BM :, k * BK :], a)
            tile.copy(B[k * BK :, bn * BN :], b)
            tile.gemm(a, b, c)
        tile.copy(c, C[bm * BM :, bn * BN :])
    return C


@tile.kernel(cpu=SCHEDULE, choices=CHOICES)
def gemm_tn(
    A: tile.Tensor, B: tile.Tensor, *, BM: int = 128, BN: int = 256, BK: int = 64, stages: int = 4
) -> Any:
    """C [M, N] = A [K, M]^T @ B [K, N], as gradients of weights need."""
    K, M = A.shape
    K, N = B.shape
    C = tile.empty((M, N), A.dtype)
    for bm, bn in tile.grid(tile.ceildiv(M, BM), tile.ceildiv(N, BN), panel=8):
        a, b = tile.shared((BK, BM), A.dtype), tile.shared((BK, BN), B.dtype)
        c = tile.fragment((BM, BN), tile.f32, fill=0)
        for k in tile.pipelined(tile.ceildiv(K, BK), stages=stages):
            tile.copy(A[k * BK :, bm * BM :], a)
            tile.copy(B[k * BK :, bn * BN :], b)
            tile.gemm(a.T, b, c)
        tile.copy(c, C[bm * BM :, bn * BN :])
    return C


@tile.inline
def activated(x: Any, name: str) -> Any:
    """One of "none", "relu", "silu", "gelu_tanh"."""
    if name == "relu":
        x = max(x, 0.0)
    if name == "silu":
        x = x * tile.sigmoid(x)
    if name == "gelu_tanh":
        x = 0.5 * x * (1.0 + tile.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))
    return x


@tile.kernel(cpu=SCHEDULE, choices=CHOICES)
def linear(
    A: tile.Tensor,
    B: tile.Tensor,
    bias: tile.Tensor | None,
    *,
    activation: str = "none",
    BM: int = 128,
    BN: int = 256,
    BK: int = 64,
    stages: int = 4,
) -> Any:
    """C [M, N] = activation(A [M, K] @ B [N, K]^T + bias [N]): relu, silu, gelu_tanh or none, on the accumulator."""
    M, K = A.shape
    N, K = B.shape
    if bias is not None:
        (N,) = bias.shape
    C = tile.empty((M, N), A.dtype)
    for bm, bn in tile.grid(tile.ceildiv(M, BM), tile.ceildiv(N, BN), panel=8):
        a, b = tile.shared((BM, BK), A.dtype), tile.shared((BN, BK), B.dtype)
        c = tile.fragment((BM, BN), tile.f32, fill=0)
        for k in tile.pipelined(tile.ceildiv(K, BK), stages=stages):
            tile.copy(A[bm * BM :, k * BK :], a)
            tile.copy(B[bn * BN :, k * BK :], b)
            tile.gemm(a, b.T, c)
        for i, j in tile.parallel(BM, BN):
            c[i, j] = activated(c[i, j] + (bias[bn * BN + j] if bias is not None else 0.0), activation)
        tile.copy(c, C[bm * BM :, bn * BN :])
    return C


@tile.kernel(cpu=SCHEDULE, choices=CHOICES)
def gemm_split_k(
    A: tile.Tensor,
    B: tile.Tensor,
    *,
    splits: int = 4,
    BM: int = 128,
    BN: int = 128,
    BK: int = 64,
    stages: int = 4,
) -> Any:
    """P [splits, M, N] f32: products of parts of K, for few rows and long sums; `sum_splits` adds them up in order."""
    M, K = A.shape
    N, K = B.shape
    P = tile.empty((splits, M, N), tile.f32)
    for bm, bn, part in tile.grid(tile.ceildiv(M, BM), tile.ceildiv(N, BN), splits):
        a, b = tile.shared((BM, BK), A.dtype), tile.shared((BN, BK), B.dtype)
        c = tile.fragment((BM, BN), tile.f32, fill=0)
        steps = tile.ceildiv(K, BK)
        each = tile.ceildiv(steps, splits)
        for k in tile.pipelined(part * each, min((part + 1) * each, steps), stages=stages):
            tile.copy(A[bm * BM :, k * BK :], a)
            tile.copy(B[bn * BN :, k * BK :], b)
            tile.gemm(a, b.T, c)
        tile.copy(c, P[part, bm * BM :, bn * BN :])
    return P


@tile.kernel
def sum_splits(P: tile.Tensor, like: tile.Tensor, *, BN: int = 1024) -> Any:
    """C [M, N] = the sum of P [S, M, N] over S, in order, in the type of `like`."""
    S, M, N = P.shape
    C = tile.empty((M, N), like.dtype)
    for bn, m in tile.grid(tile.ceildiv(N, BN), M):
        c = tile.fragment((BN,), tile.f32, fill=0)
        for part in range(S):
            for j in tile.parallel(BN):
                c[j] = c[j] + P[part, m, bn * BN + j]
        tile.copy(c, C[m, bn * BN :])
    return C
