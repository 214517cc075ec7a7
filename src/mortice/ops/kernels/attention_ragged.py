"""Attention of sequences of different lengths that lie one after the other; their keys too, or in pages."""

from typing import Any

from mortice import tile
from mortice.ops.kernels.softmax import LOG2E, finish, online_softmax, softmax_state


@tile.kernel
def attention_ragged(
    Q: tile.Tensor,
    K: tile.Tensor,
    V: tile.Tensor,
    queries: tile.Tensor,
    keys: tile.Tensor,
    longest: int,
    scale: float,
    *,
    causal: bool = True,
    BM: int = 128,
    BN: int = 128,
    stages: int = 2,
) -> Any:
    """Y [N, H, D]: sequence b has the rows queries[b] to queries[b + 1] of Q [N, H, D] and keys[b] to keys[b + 1] of K
    and V [M, G, D]; queries, keys [B + 1] i32; none has more than `longest` queries. Causal: the last query sees the
    last key."""
    N, H, D = Q.shape
    _, G, D = K.shape
    _, G, D = V.shape
    (B1,) = queries.shape
    (B1,) = keys.shape
    assert H % G == 0, "H % G == 0"
    Y = tile.empty((N, H, D), Q.dtype)
    for bm, h, b in tile.grid(tile.ceildiv(longest, BM), H, B1 - 1):
        q, k, v = tile.shared((BM, D), Q.dtype), tile.shared((BN, D), K.dtype), tile.shared((BN, D), V.dtype)
        s, p = tile.fragment((BM, BN), tile.f32), tile.fragment((BM, BN), Q.dtype)
        o = tile.fragment((BM, D), tile.f32, fill=0)
        m, shrink, total = softmax_state(BM)
        first, key = max(queries[b], 0), max(keys[b], 0)
        S, T = queries[b + 1] - first, keys[b + 1] - key
        if bm * BM < S:
            tile.copy(Q[first + bm * BM :, h, :], q)
            limit = max(min(T, (bm + 1) * BM + T - S), 0) if causal else T
            for j in tile.pipelined(tile.ceildiv(limit, BN), stages=stages):
                tile.copy(K[key + j * BN :, h // (H // G), :], k)
                tile.copy(V[key + j * BN :, h // (H // G), :], v)
                tile.gemm(q, k.T, s, clear=True)
                for x, y in tile.parallel(BM, BN):
                    seen = j * BN + y < T and (not causal or j * BN + y <= bm * BM + x + T - S)
                    s[x, y] = s[x, y] if seen else -tile.inf
                online_softmax(s, scale * LOG2E, m, shrink, total, o)
                tile.copy(s, p)
                tile.gemm(p, v, o)
            finish(o, scale * LOG2E, m, total)
            for x, d in tile.parallel(BM, D):
                if bm * BM + x < S:
                    Y[first + bm * BM + x, h, d] = o[x, d]
    return Y


@tile.kernel
def attention_paged(
    Q: tile.Tensor,
    K: tile.Tensor,
    V: tile.Tensor,
    table: tile.Tensor,
    queries: tile.Tensor,
    lengths: tile.Tensor,
    longest: int,
    scale: float,
    *,
    BM: int = 128,
    BN: int = 64,
    stages: int = 2,
) -> Any:
    """Causal attention of new tokens after a prefix. Y [N, H, D]: sequence b has the rows queries[b] to queries[b + 1]
    of Q [N, H, D] and lengths[b] keys, those of the new tokens last, in the pages table[b, ...] of K and V [P, page, G,
    D]; queries [B + 1], lengths [B], table [B, pages] i32; page divides BN."""
    N, H, D = Q.shape
    _, page, G, D = K.shape
    _, page, G, D = V.shape
    B, _ = table.shape
    (_,) = queries.shape
    (B,) = lengths.shape
    assert H % G == 0, "H % G == 0"
    assert BN % page == 0, "BN % page == 0"
    Y = tile.empty((N, H, D), Q.dtype)
    for bm, h, b in tile.grid(tile.ceildiv(longest, BM), H, B):
        q, k, v = tile.shared((BM, D), Q.dtype), tile.shared((BN, D), K.dtype), tile.shared((BN, D), V.dtype)
        s, p = tile.fragment((BM, BN), tile.f32), tile.fragment((BM, BN), Q.dtype)
        o = tile.fragment((BM, D), tile.f32, fill=0)
        m, shrink, total = softmax_state(BM)
        first, T = max(queries[b], 0), lengths[b]
        S = queries[b + 1] - first
        if bm * BM < S:
            tile.copy(Q[first + bm * BM :, h, :], q)
            for j in tile.pipelined(tile.ceildiv(max(min(T, (bm + 1) * BM + T - S), 0), BN), stages=stages):
                for x in tile.unroll(BN // page):
                    at = table[b, j * (BN // page) + x]
                    tile.copy(K[at, :, h // (H // G), :], k[x * page : (x + 1) * page, :])
                    tile.copy(V[at, :, h // (H // G), :], v[x * page : (x + 1) * page, :])
                tile.gemm(q, k.T, s, clear=True)
                for x, y in tile.parallel(BM, BN):
                    seen = j * BN + y < T and j * BN + y <= bm * BM + x + T - S
                    s[x, y] = s[x, y] if seen else -tile.inf
                online_softmax(s, scale * LOG2E, m, shrink, total, o)
                for y, d in tile.parallel(BN, D):
                    if j * BN + y >= T:
                        v[y, d] = 0.0
                tile.copy(s, p)
                tile.gemm(p, v, o)
            finish(o, scale * LOG2E, m, total)
            for x, d in tile.parallel(BM, D):
                if bm * BM + x < S:
                    Y[first + bm * BM + x, h, d] = o[x, d]
    return Y
