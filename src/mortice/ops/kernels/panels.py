"""Products with weights that are packed once, in the order a CPU's matrix unit reads them: see `tile.panels`."""

from typing import Any

from mortice import tile


@tile.kernel
def pack_panels(W: tile.Tensor) -> Any:
    """P [ceil(N / 32), ceil(K / 32), 1024] of W [N, K] bf16; what lies beyond W is 0."""
    N, K = W.shape
    P = tile.empty((tile.ceildiv(N, 32), tile.ceildiv(K, 32), 1024), W.dtype)
    for p, s, e in tile.parallel(tile.ceildiv(N, 32), tile.ceildiv(K, 32), 1024):
        P[p, s, e] = W[p * 32 + e // 512 * 16 + e % 32 // 2, s * 32 + e % 512 // 32 * 2 + e % 2]
    return P


@tile.kernel
def rows_of_panels(P: tile.Tensor, ids: tile.Tensor) -> Any:
    """Y [T, K]: rows ids [T] i64 of the matrix in panels P, whose K is a multiple of 32; 0 where there is no such row."""
    (T,) = ids.shape
    _, steps, _ = P.shape
    Y = tile.empty((T, steps * 32), P.dtype)
    for b in tile.grid(tile.ceildiv(T, 1024)):  # fewer rows are not worth waking another thread
        for t in range(b * 1024, min(b * 1024 + 1024, T)):
            panel, first = ids[t] // 32, ids[t] % 32 // 16 * 512 + ids[t] % 16 * 2
            for s, pair in tile.parallel(steps, 16):
                Y[t, s * 32 + pair * 2] = P[panel, s, first + pair * 32]
                Y[t, s * 32 + pair * 2 + 1] = P[panel, s, first + pair * 32 + 1]
    return Y


@tile.kernel(choices={"BM": (16, 32, 64, 128, 256), "BN": (32, 64, 128, 256), "BK": (256, 512, 1024)})
def linear_panels(
    X: tile.Tensor,
    P: tile.Tensor,
    bias: tile.Tensor | None,
    N: int,
    *,
    BM: int = 16,
    BN: int = 64,
    BK: int = 512,
) -> Any:
    """Y [M, N] = X [M, K] @ W [N, K]^T + bias [N], W in panels P [ceil(N / 32), K / 32, 1024] as `pack_panels` makes them.
    Each number is summed over K in one order, whatever M is."""
    M, K = X.shape
    panels, steps, _ = P.shape
    assert steps * 32 == K, "P has K / 32 steps"
    assert tile.ceildiv(N, 32) == panels, "P has ceil(N / 32) panels"
    W = tile.panels(P)
    Y = tile.empty((M, N), X.dtype)
    for bn, bm in tile.grid(tile.ceildiv(N, BN), tile.ceildiv(M, BM)):
        x, w = tile.shared((BM, BK), X.dtype), tile.shared((BN, BK), P.dtype)
        y = tile.fragment((BM, BN), tile.f32, fill=0)
        for k in tile.pipelined(tile.ceildiv(K, BK), stages=4):
            tile.copy(X[bm * BM :, k * BK :], x)
            tile.copy(W[bn * BN :, k * BK :], w)
            tile.gemm(x, w.T, y)
        if bias is not None:
            for i, j in tile.parallel(BM, BN):
                y[i, j] = y[i, j] + bias[bn * BN + j]
        tile.copy(y, Y[bm * BM :, bn * BN :])
    return Y
