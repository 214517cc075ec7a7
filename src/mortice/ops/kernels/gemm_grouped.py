"""Matrix products of groups of rows, each with a matrix of its own: the experts of a mixture."""

from typing import Any

from mortice import tile
from mortice.ops.kernels.gemm import CHOICES

# A block asks the groups one after the other how many tiles of rows they have, until its own number falls in one: no
# table is made beforehand, and no block is launched for a tile that cannot be.


@tile.kernel(cpu={"BM": 128, "BN": 256, "BK": 256}, choices=CHOICES)
def grouped_gemm(
    X: tile.Tensor,
    W: tile.Tensor,
    offsets: tile.Tensor,
    *,
    BM: int = 128,
    BN: int = 256,
    BK: int = 64,
    stages: int = 4,
) -> Any:
    """Y [T, N]: rows offsets[e] to offsets[e + 1] of X [T, K] times W [E, N, K][e]^T; offsets [E + 1] i32 go up to T.
    Groups of any size, empty ones too; rows of no group are not written."""
    T, K = X.shape
    E, N, K = W.shape
    (_,) = offsets.shape
    Y = tile.empty((T, N), X.dtype)
    for bn, bm in tile.grid(tile.ceildiv(N, BN), tile.ceildiv(T, BM) + E):
        x, w = tile.shared((BM, BK), X.dtype), tile.shared((BN, BK), W.dtype)
        y = tile.fragment((BM, BN), tile.f32, fill=0)
        g, number = 0, bm
        while g < E - 1 and number >= tile.ceildiv(offsets[g + 1] - offsets[g], BM):
            number = number - tile.ceildiv(offsets[g + 1] - offsets[g], BM)
            g = g + 1
        first = offsets[g] + number * BM
        last = offsets[g + 1]
        if first < last:
            for k in tile.pipelined(tile.ceildiv(K, BK), stages=stages):
                tile.copy(X[first:, k * BK :], x)
                tile.copy(W[g, bn * BN :, k * BK :], w)
                tile.gemm(x, w.T, y)
            if first + BM <= last:
                tile.copy(y, Y[first:, bn * BN :])
            else:
                for i, j in tile.parallel(BM, BN):
                    if first + i < last:
                        Y[first + i, bn * BN + j] = y[i, j]
    return Y


@tile.kernel(cpu={"BM": 128, "BN": 128})
def grouped_gemm_fp8(
    X: tile.Tensor,
    SX: tile.Tensor,
    W: tile.Tensor,
    SW: tile.Tensor,
    offsets: tile.Tensor,
    *,
    BM: int = 128,
    BN: int = 128,
    stages: int = 4,
) -> Any:
    """The same of fp8 numbers, Y [T, N] bf16: scales f32 of 1 x 128 in SX [T, K / 128], of 128 x 128 in SW [E, N / 128,
    K / 128], rounded up; each 128 of K is promoted to f32."""
    T, K = X.shape
    E, N, K = W.shape
    T, KB = SX.shape
    E, NB, KB = SW.shape
    (_,) = offsets.shape
    assert tile.ceildiv(K, 128) == KB, "SX and SW have ceildiv(K, 128) columns"
    assert tile.ceildiv(N, 128) == NB, "SW has ceildiv(N, 128) rows"
    assert 128 % BN == 0, "128 % BN == 0"
    Y = tile.empty((T, N), tile.bf16)
    for bn, bm in tile.grid(tile.ceildiv(N, BN), tile.ceildiv(T, BM) + E):
        x, w = tile.shared((BM, 128), X.dtype), tile.shared((BN, 128), W.dtype)
        part, rows = tile.fragment((BM, BN), tile.f32), tile.fragment((BM,), tile.f32)
        y = tile.fragment((BM, BN), tile.f32, fill=0)
        g, number = 0, bm
        while g < E - 1 and number >= tile.ceildiv(offsets[g + 1] - offsets[g], BM):
            number = number - tile.ceildiv(offsets[g + 1] - offsets[g], BM)
            g = g + 1
        first = offsets[g] + number * BM
        last = offsets[g + 1]
        if first < last:
            for k in tile.pipelined(KB, stages=stages):
                tile.copy(X[first:, k * 128 :], x)
                tile.copy(W[g, bn * BN :, k * 128 :], w)
                tile.copy(SX[first:, k], rows)
                tile.gemm(x, w.T, part, clear=True)
                block = SW[g, bn * BN // 128, k]
                for i, j in tile.parallel(BM, BN):
                    y[i, j] = y[i, j] + part[i, j] * (rows[i] * block)
            if first + BM <= last:
                tile.copy(y, Y[first:, bn * BN :])
            else:
                for i, j in tile.parallel(BM, BN):
                    if first + i < last:
                        Y[first + i, bn * BN + j] = y[i, j]
    return Y
