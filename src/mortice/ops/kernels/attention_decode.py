"""Attention of one new token a sequence over keys in pages, the keys split over blocks, and the sum of the parts
(Flash-Decoding; the parts carry log-sum-exps)."""

from typing import Any

from mortice import tile
from mortice.ops.kernels.softmax import LOG2E, finish, online_softmax, softmax_state


@tile.kernel(cpu={"BH": 0, "stages": 2})
def paged_decode(
    Q: tile.Tensor,
    K: tile.Tensor,
    V: tile.Tensor,
    table: tile.Tensor,
    lengths: tile.Tensor,
    scale: float,
    *,
    BH: int = 64,
    BN: int = 64,
    splits: int = 8,
    stages: int = 3,
) -> Any:
    """Of each part of the keys, outputs Y [B, splits, H, D] and log-sum-exps L [B, splits, H], f32: `combine` makes one
    of them. Q [B, H, D], K and V [P, page, G, D], table [B, pages], lengths [B] i32; page divides BN; the heads of a
    group share a block of BH rows (0: as many as they are; what is in further rows is not stored)."""
    B, H, D = Q.shape
    _, page, G, D = K.shape
    _, page, G, D = V.shape
    B, _ = table.shape
    (B,) = lengths.shape
    assert H % G == 0, "H % G == 0"
    assert scale > 0, "scale > 0"
    assert BN % page == 0, "BN % page == 0"
    R = H // G
    rows = BH if BH > 0 else R
    assert rows >= R, "BH >= H / G"
    Y, L = tile.empty((B, splits, H, D), tile.f32), tile.empty((B, splits, H), tile.f32)
    for g, part, b in tile.grid(G, splits, B):
        q, k, v = (
            tile.shared((rows, D), Q.dtype),
            tile.shared((BN, D), K.dtype),
            tile.shared((BN, D), V.dtype),
        )
        s, p = tile.fragment((rows, BN), tile.f32), tile.fragment((rows, BN), Q.dtype)
        o = tile.fragment((rows, D), tile.f32, fill=0)
        m, shrink, total = softmax_state(rows)
        tile.copy(Q[b, g * R :, :], q)
        length = lengths[b]
        tiles = tile.ceildiv(length, BN)
        each = tile.ceildiv(tiles, splits)
        for j in tile.pipelined(part * each, min((part + 1) * each, tiles), stages=stages):
            for x in tile.unroll(BN // page):
                at = table[b, j * (BN // page) + x]
                tile.copy(K[at, :, g, :], k[x * page : (x + 1) * page, :])
                tile.copy(V[at, :, g, :], v[x * page : (x + 1) * page, :])
            tile.gemm(q, k.T, s, clear=True)
            for x, y in tile.parallel(rows, BN):
                s[x, y] = s[x, y] if j * BN + y < length else -tile.inf
            online_softmax(s, scale * LOG2E, m, shrink, total, o)
            if (j + 1) * BN > length:
                for y, d in tile.parallel(BN, D):
                    if j * BN + y >= length:
                        v[y, d] = 0.0
            tile.copy(s, p)
            tile.gemm(p, v, o)
        finish(o, scale * LOG2E, m, total)
        for x, d in tile.parallel(rows, D):
            if x < R:
                Y[b, part, g * R + x, d] = o[x, d]
        for x in tile.parallel(rows):
            if x < R:
                L[b, part, g * R + x] = m[x]
    return Y, L


@tile.kernel
def combine(Y: tile.Tensor, L: tile.Tensor, like: tile.Tensor) -> Any:
    """O [B, H, D] in the type of `like`, of parts Y [B, S, H, D] with log-sum-exps L [B, S, H]; without keys 0."""
    B, S, H, D = Y.shape
    B, S, H = L.shape
    O = tile.empty((B, H, D), like.dtype)  # noqa: E741
    for h, b in tile.grid(H, B):
        o = tile.fragment((D,), tile.f32, fill=0)
        top, total = -tile.inf, 0.0
        for part in range(S):
            top = max(top, L[b, part, h])
        for part in range(S):
            weight = tile.exp(L[b, part, h] - top) if L[b, part, h] > -tile.inf else 0.0
            total = total + weight
            for d in tile.parallel(D):
                o[d] = o[d] + weight * Y[b, part, h, d]
        for d in tile.parallel(D):
            O[b, h, d] = o[d] / total if total > 0 else 0.0
    return O
