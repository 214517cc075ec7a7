"""Products of few rows with a large matrix, bound by reading it: rows of the matrix take the matrix unit's 64 rows, rows of
X its columns, which go by 8."""

from typing import Any

from mortice import tile


@tile.inline
def thin_product(X: Any, W: Any, row: Any, column: Any, steps: Any, tiles: Any, stages: Any) -> Any:
    """[BN, BM] f32: rows of W from `column` on times rows of X from `row` on. steps: from and to which block of K; tiles:
    BN, BM, BK."""
    w, x = tile.shared((tiles[0], tiles[2]), W.dtype), tile.shared((tiles[1], tiles[2]), X.dtype)
    y = tile.fragment((tiles[0], tiles[1]), tile.f32, fill=0)
    for k in tile.pipelined(steps[0], steps[1], stages=stages):
        tile.copy(W[column:, k * tiles[2] :], w)
        tile.copy(X[row:, k * tiles[2] :], x)
        tile.gemm(w, x.T, y)
    return y


@tile.kernel(cpu={"BN": 128, "BM": 16, "BK": 256})
def gemm_thin(
    X: tile.Tensor, W: tile.Tensor, *, BN: int = 64, BM: int = 16, BK: int = 128, stages: int = 6
) -> Any:
    """Y [M, N] = X [M, K] @ W [N, K]^T."""
    M, K = X.shape
    N, K = W.shape
    Y = tile.empty((M, N), X.dtype)
    for bm, bn in tile.grid(tile.ceildiv(M, BM), tile.ceildiv(N, BN)):
        y = thin_product(X, W, bm * BM, bn * BN, (0, tile.ceildiv(K, BK)), (BN, BM, BK), stages)
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
        steps = tile.ceildiv(K, BK)
        each = tile.ceildiv(steps, splits)
        mine = (part * each, min((part + 1) * each, steps))
        y = thin_product(X, W, bm * BM, bn * BN, mine, (BN, BM, BK), stages)
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
