"""Matrix products of groups of rows, each with a matrix of its own: the experts of a mixture."""

from typing import Any

from mortice import tile
from mortice.ops.kernels.gemm import CHOICES
from mortice.ops.kernels.gemm_fp8 import add_scaled


@tile.inline
def rows_of_tile(offsets: Any, groups: Any, BM: Any, number: Any) -> Any:
    """Group, first row and end of its rows of the tile with this number: a block asks the groups one after the other how
    many tiles of rows they have, so no table is made beforehand. Past the last tile the first row is not below the end."""
    g, left = 0, number
    while g < groups - 1 and left >= tile.ceildiv(offsets[g + 1] - offsets[g], BM):
        left = left - tile.ceildiv(offsets[g + 1] - offsets[g], BM)
        g = g + 1
    return g, offsets[g] + left * BM, offsets[g + 1]


@tile.inline
def store_rows(y: Any, Y: Any, first: Any, last: Any, left: Any) -> Any:
    """The rows of y before `last`: those after it are another group's."""
    if first + y.shape[0] <= last:
        tile.copy(y, Y[first:, left:])
    else:
        for i, j in tile.parallel(y.shape[0], y.shape[1]):
            if first + i < last:
                Y[first + i, left + j] = y[i, j]


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
        g, first, last = rows_of_tile(offsets, E, BM, bm)
        if first < last:
            for k in tile.pipelined(tile.ceildiv(K, BK), stages=stages):
                tile.copy(X[first:, k * BK :], x)
                tile.copy(W[g, bn * BN :, k * BK :], w)
                tile.gemm(x, w.T, y)
            store_rows(y, Y, first, last, bn * BN)
    return Y


@tile.kernel(cpu={"BM": 128, "BN": 128}, choices={"BN": (128, 256)})
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
    assert 128 % BN == 0 or BN == 256, "BN divides 128 or is 256"
    half = min(BN, 128)
    Y = tile.empty((T, N), tile.bf16)
    for bn, bm in tile.grid(tile.ceildiv(N, BN), tile.ceildiv(T, BM) + E):
        x, w = tile.shared((BM, 128), X.dtype), tile.shared((BN, 128), W.dtype)
        part, rows = tile.fragment((BM, half), tile.f32), tile.fragment((BM,), tile.f32)
        y, z = tile.fragment((BM, half), tile.f32, fill=0), tile.fragment((BM, half), tile.f32, fill=0)
        g, first, last = rows_of_tile(offsets, E, BM, bm)
        if first < last:
            for k in tile.pipelined(KB, stages=stages):
                tile.copy(X[first:, k * 128 :], x)
                tile.copy(W[g, bn * BN :, k * 128 :], w)
                tile.copy(SX[first:, k], rows)
                tile.gemm(x, w[:half, :].T, part, clear=True)
                add_scaled(y, part, rows, SW[g, bn * BN // 128, k])
                if BN == 256:
                    tile.gemm(x, w[half:, :].T, part, clear=True)
                    add_scaled(z, part, rows, SW[g, bn * 2 + 1, k])
            store_rows(y, Y, first, last, bn * BN)
            if BN == 256:
                store_rows(z, Y, first, last, bn * BN + half)
    return Y
