"""Products of few rows with a large matrix, bound by reading it: rows of the matrix take the matrix unit's 64 rows, rows of
X its columns, which go by 8."""

from typing import Any

from mortice import tile


@tile.kernel(cpu={"BN": 128, "BM": 16, "BK": 256})
def gemm_thin(
    X: tile.Tensor, W: tile.Tensor, *, BN: int = 64, BM: int = 16, BK: int = 128, stages: int = 6
) -> Any:
    """Y [M, N] = X [M, K] @ W [N, K]^T."""
    M, K = X.shape
    N, K = W.shape
    Y = tile.empty((M, N), X.dtype)
    for bm, bn in tile.grid(tile.ceildiv(M, BM), tile.ceildiv(N, BN)):
        w, x = tile.shared((BN, BK), W.dtype), tile.shared((BM, BK), X.dtype)
        y = tile.fragment((BN, BM), tile.f32, fill=0)
        for k in tile.pipelined(tile.ceildiv(K, BK), stages=stages):
            tile.copy(W[bn * BN :, k * BK :], w)
            tile.copy(X[bm * BM :, k * BK :], x)
            tile.gemm(w, x.T, y)
        for i, j in tile.parallel(BN, BM):
            Y[bm * BM + j, bn * BN + i] = y[i, j]
    return Y


@tile.kernel(cpu={"BN": 128, "BM": 16, "BK": 256})
def gemm_thin_split(
    X: tile.Tensor,
    W: tile.Tensor,
    *,
    splits: int = 2,
    BN: int = 64,
    BM: int = 16,
    BK: int = 128,
    BJ: int = 512,
    stages: int = 6,
) -> Any:
    """The same where W has too few rows to occupy the chip: K in `splits` parts, products P [splits, M, N] f32, then
    their sum in order. Y and P."""
    M, K = X.shape
    N, K = W.shape
    Y, P = tile.empty((M, N), X.dtype), tile.empty((splits, M, N), tile.f32)
    for bm, bn, part in tile.grid(tile.ceildiv(M, BM), tile.ceildiv(N, BN), splits):
        w, x = tile.shared((BN, BK), W.dtype), tile.shared((BM, BK), X.dtype)
        y = tile.fragment((BN, BM), tile.f32, fill=0)
        steps = tile.ceildiv(K, BK)
        each = tile.ceildiv(steps, splits)
        for k in tile.pipelined(part * each, min((part + 1) * each, steps), stages=stages):
            tile.copy(W[bn * BN :, k * BK :], w)
            tile.copy(X[bm * BM :, k * BK :], x)
            tile.gemm(w, x.T, y)
        for i, j in tile.parallel(BN, BM):
            P[part, bm * BM + j, bn * BN + i] = y[i, j]
    for bj, m in tile.grid(tile.ceildiv(N, BJ), M):
        one, total = tile.fragment((BJ,), tile.f32), tile.fragment((BJ,), tile.f32, fill=0)
        for part in tile.unroll(splits):
            tile.copy(P[part, m, bj * BJ :], one)
            for j in tile.parallel(BJ):
                total[j] = total[j] + one[j]
        tile.copy(total, Y[m, bj * BJ :])
    return Y, P
