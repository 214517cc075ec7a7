"""Products of a few rows with a large matrix: bound by reading the matrix."""

from typing import Any

from mortice import tile


@tile.kernel(
    cpu={"rows": 16, "BK": 1024, "once": False},
    choices={"rows": (4, 8, 16, 32), "BK": (128, 256, 512, 1024, 2048)},
)
def gemv(
    X: tile.Tensor, W: tile.Tensor, *, rows: int = 4, BK: int = 1024, threads: int = 128, once: bool = True
) -> Any:
    """Y [M, N] = X [M, K] @ W [N, K]^T, for small M. once: threads keep sums of their own, folded after the loop; a CPU
    folds each piece as it passes, and then the pieces are never tiles."""
    M, K = X.shape
    N, K = W.shape
    Y = tile.empty((M, N), X.dtype)
    for n, m in tile.grid(tile.ceildiv(N, rows), M, threads=threads):
        y = tile.fragment((rows,), tile.f32, fill=0)
        if once:
            w, x = tile.fragment((rows, BK), W.dtype), tile.fragment((BK,), X.dtype)
            product = tile.fragment((rows, BK), tile.f32, fill=0)
            for k in range(tile.ceildiv(K, BK)):
                tile.copy(W[n * rows :, k * BK :], w)
                tile.copy(X[m, k * BK :], x)
                for i, j in tile.parallel(rows, BK):
                    product[i, j] = product[i, j] + w[i, j] * x[j]
            tile.reduce_sum(product, y, axis=1)
        else:
            piece = tile.fragment((rows, BK), tile.f32)
            for k in range(tile.ceildiv(K, BK)):
                for i, j in tile.parallel(rows, BK):
                    piece[i, j] = W[n * rows + i, k * BK + j] * X[m, k * BK + j]
                tile.reduce_sum(piece, y, axis=1, clear=False)
        tile.copy(y, Y[m, n * rows :])
    return Y


@tile.kernel(cpu={"rows": 16, "BK": 1024}, choices={"rows": (4, 8, 16, 32), "BK": (256, 512, 1024, 2048)})
def gemv_int8(X: tile.Tensor, W: tile.Tensor, S: tile.Tensor, *, rows: int = 4, BK: int = 512) -> Any:
    """Y [M, N] = X [M, K] @ (W S)^T: W [N, K] i8, a scale of each row in S [N] f32."""
    M, K = X.shape
    N, K = W.shape
    (N,) = S.shape
    Y = tile.empty((M, N), X.dtype)
    for n, m in tile.grid(tile.ceildiv(N, rows), M):
        product = tile.fragment((rows, BK), tile.f32)
        y = tile.fragment((rows,), tile.f32, fill=0)
        for k in range(tile.ceildiv(K, BK)):
            for i, j in tile.parallel(rows, BK):
                product[i, j] = tile.f32(W[n * rows + i, k * BK + j]) * X[m, k * BK + j]
            tile.reduce_sum(product, y, axis=1, clear=False)
        for i in tile.parallel(rows):
            y[i] = y[i] * S[n * rows + i]
        tile.copy(y, Y[m, n * rows :])
    return Y


@tile.kernel(
    cpu={"rows": 16, "BK": 1024, "paired": True},
    choices={"rows": (4, 8, 16, 32), "BK": (256, 512, 1024, 2048)},
)
def gemv_int4(
    X: tile.Tensor,
    W: tile.Tensor,
    S: tile.Tensor,
    Z: tile.Tensor,
    *,
    group: int = 32,
    rows: int = 4,
    BK: int = 512,
    paired: bool = False,
) -> Any:
    """Y [M, N] = X [M, K] @ ((W - Z) S)^T: W [N, K / 2] u8, two 4-bit numbers each, the even column in the low half;
    scales S and zero points Z [N, K / group] f32. paired: byte by byte, group by group, which a CPU has vectors for; else
    element by element."""
    M, K = X.shape
    N, KH = W.shape
    N, KG = S.shape
    N, KG = Z.shape
    assert KH * 2 == K, "W has K / 2 columns"
    assert KG * group == K, "S and Z have K / group columns"
    codes = tile.view(W, tile.u4)
    Y = tile.empty((M, N), X.dtype)
    for n, m in tile.grid(tile.ceildiv(N, rows), M):
        y = tile.fragment((rows,), tile.f32, fill=0)
        if paired:
            half, at_once = group // 2, max(BK // group, 1)
            half_piece = at_once * half
            even, odd = tile.fragment((half_piece,), tile.f32), tile.fragment((half_piece,), tile.f32)
            both = tile.fragment((half_piece,), tile.f32)
            sums = tile.fragment((rows, half), tile.f32, fill=0)
            for k in range(tile.ceildiv(KG, at_once)):
                for j in tile.parallel(half_piece):
                    even[j] = X[m, 2 * (k * half_piece + j)]
                    odd[j] = X[m, 2 * (k * half_piece + j) + 1]
                    both[j] = even[j] + odd[j]
                for g in range(min(at_once, KG - k * at_once)):
                    for i, j in tile.parallel(rows, half):
                        byte = W[n * rows + i, (k * at_once + g) * half + j]
                        zero = Z[n * rows + i, k * at_once + g]
                        codes_x = (
                            tile.f32(byte & 15) * even[g * half + j] + tile.f32(byte >> 4) * odd[g * half + j]
                        )
                        value = codes_x - zero * both[g * half + j]
                        sums[i, j] = sums[i, j] + value * S[n * rows + i, k * at_once + g]
            tile.reduce_sum(sums, y, axis=1)
        else:
            product = tile.fragment((rows, BK), tile.f32)
            for k in range(tile.ceildiv(K, BK)):
                for i, j in tile.parallel(rows, BK):
                    at = k * BK + j
                    weight = (codes[n * rows + i, at] - Z[n * rows + i, at // group]) * S[
                        n * rows + i, at // group
                    ]
                    product[i, j] = weight * X[m, at]
                tile.reduce_sum(product, y, axis=1, clear=False)
        tile.copy(y, Y[m, n * rows :])
    return Y
