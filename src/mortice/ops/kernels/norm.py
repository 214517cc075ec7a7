"""Normalisation of rows."""

from typing import Any

from mortice import tile


@tile.kernel(choices={"rows": (1, 2, 4, 8, 16)})
def rms_norm(X: tile.Tensor, W: tile.Tensor, eps: float, *, rows: int = 4) -> Any:
    """Y [N, D] = X / sqrt(mean(X^2) + eps) * W [D], row by row (arXiv 1910.07467), in f32, Y of X's type."""
    N, D = X.shape
    (D,) = W.shape
    Y = tile.empty((N, D), X.dtype)
    for block in tile.grid(tile.ceildiv(N, rows), threads=128):
        x = tile.fragment((rows, D), tile.f32)
        square = tile.fragment((rows, D), tile.f32)
        total = tile.fragment((rows,), tile.f32)
        tile.copy(X[block * rows :, :], x)
        for i, d in tile.parallel(rows, D):
            square[i, d] = x[i, d] * x[i, d]
        tile.reduce_sum(square, total, axis=1)
        for i in tile.parallel(rows):
            total[i] = tile.rsqrt(total[i] / D + eps)
        for i, d in tile.parallel(rows, D):
            x[i, d] = x[i, d] * total[i] * W[d]
        tile.copy(x, Y[block * rows :, :])
    return Y


@tile.kernel(choices={"rows": (1, 2, 4, 8, 16)})
def add_rms_norm(X: tile.Tensor, R: tile.Tensor, W: tile.Tensor, eps: float, *, rows: int = 4) -> Any:
    """Of S = X + R [N, D], rounded to their type: Y = S / sqrt(mean(S^2) + eps) * W [D]; and S."""
    N, D = X.shape
    N, D = R.shape
    (D,) = W.shape
    Y, S = tile.empty((N, D), X.dtype), tile.empty((N, D), X.dtype)
    for block in tile.grid(tile.ceildiv(N, rows), threads=128):
        x, r = tile.fragment((rows, D), X.dtype), tile.fragment((rows, D), R.dtype)
        square = tile.fragment((rows, D), tile.f32)
        total = tile.fragment((rows,), tile.f32)
        tile.copy(X[block * rows :, :], x)
        tile.copy(R[block * rows :, :], r)
        for i, d in tile.parallel(rows, D):
            x[i, d] = x[i, d] + r[i, d]
        for i, d in tile.parallel(rows, D):
            square[i, d] = x[i, d] * x[i, d]
        tile.reduce_sum(square, total, axis=1)
        tile.copy(x, S[block * rows :, :])
        for i, d in tile.parallel(rows, D):
            x[i, d] = x[i, d] * tile.rsqrt(total[i] / D + eps) * W[d]
        tile.copy(x, Y[block * rows :, :])
    return Y, S
