"""Attention forward: a tile of queries against all keys, softmax as they pass (FlashAttention, arXiv 2205.14135)."""

import math
from typing import Any

from mortice import tile

LOG2E = math.log2(math.e)


@tile.kernel
def attention(
    Q: tile.Tensor,
    K: tile.Tensor,
    V: tile.Tensor,
    scale: float,
    *,
    causal: bool = False,
    BM: int = 128,
    BN: int = 128,
    stages: int = 2,
) -> Any:
    """Y [B, S, H, D] of Q [B, S, H, D], K and V [B, T, G, D]; H is a multiple of G. Causal: the last query sees the last
    key. Also the logarithm (base e) of each row's sum of exponentials, L [B, H, S]. A row without keys gives 0."""
    B, S, H, D = Q.shape
    B, T, G, D = K.shape
    B, T, G, D = V.shape
    assert H % G == 0, "H % G == 0"
    Y = tile.empty((B, S, H, D), Q.dtype)
    L = tile.empty((B, H, S), tile.f32)
    for bm, h, b in tile.grid(tile.ceildiv(S, BM), H, B):
        q, k, v = tile.shared((BM, D), Q.dtype), tile.shared((BN, D), K.dtype), tile.shared((BN, D), V.dtype)
        s, p = tile.fragment((BM, BN), tile.f32), tile.fragment((BM, BN), Q.dtype)
        o = tile.fragment((BM, D), tile.f32, fill=0)
        m, old, total = (
            tile.fragment((BM,), tile.f32, fill=-tile.inf),
            tile.fragment((BM,), tile.f32),
            tile.fragment((BM,), tile.f32, fill=0),
        )
        g = h // (H // G)
        tile.copy(Q[b, bm * BM :, h, :], q)
        limit = min(T, (bm + 1) * BM + T - S) if causal else T
        for j in tile.pipelined(tile.ceildiv(max(limit, 0), BN), stages=stages):
            tile.copy(K[b, j * BN :, g, :], k)
            tile.copy(V[b, j * BN :, g, :], v)
            tile.gemm(q, k.T, s, clear=True)
            for x, y in tile.parallel(BM, BN):
                seen = j * BN + y < T and (not causal or j * BN + y <= bm * BM + x + T - S)
                s[x, y] = s[x, y] * (scale * LOG2E) if seen else -tile.inf
            tile.copy(m, old)
            tile.reduce_max(s, m, axis=1, clear=False)
            for x, y in tile.parallel(BM, BN):
                s[x, y] = tile.exp2(s[x, y] - m[x]) if m[x] > -tile.inf else 0.0
            for x in tile.parallel(BM):
                old[x] = tile.exp2(old[x] - m[x]) if m[x] > -tile.inf else 1.0
                total[x] = total[x] * old[x]
            tile.reduce_sum(s, total, axis=1, clear=False)
            for x, y in tile.parallel(BM, D):
                o[x, y] = o[x, y] * old[x]
            tile.copy(s, p)
            tile.gemm(p, v, o)
        for x, y in tile.parallel(BM, D):
            o[x, y] = o[x, y] / total[x] if total[x] > 0 else 0.0
        tile.copy(o, Y[b, bm * BM :, h, :])
        for x in tile.parallel(BM):
            L[b, h, bm * BM + x] = m[x] / LOG2E + tile.log(total[x]) if total[x] > 0 else -tile.inf
    return Y, L
