"""Attention forward: a tile of queries against all keys, softmax as they pass (FlashAttention, arXiv 2205.14135)."""

from typing import Any

from mortice import tile
from mortice.ops.kernels.softmax import LOG2E, finish, online_softmax, softmax_state


@tile.kernel(choices={"BM": (64, 128, 256), "BN": (64, 128, 256)})
def attention(
    Q: tile.Tensor,
    K: tile.Tensor,
    V: tile.Tensor,
    scale: float,
    *,
    causal: bool = False,
    window: int = 0,
    BM: int = 128,
    BN: int = 128,
    stages: int = 2,
) -> Any:
    """Y [B, S, H, D] of Q [B, S, H, D], K and V [B, T, G, D]; H is a multiple of G. Causal: the last query sees the
    last key, and with a window only the last `window` keys up to its own. Also the logarithm (base e) of each row's sum
    of exponentials, L [B, H, S]. A row without keys gives 0."""
    B, S, H, D = Q.shape
    B, T, G, D = K.shape
    B, T, G, D = V.shape
    assert H % G == 0, "H % G == 0"
    assert window == 0 or causal, "a window is causal"
    assert scale > 0, "scale > 0"
    Y, L = tile.empty((B, S, H, D), Q.dtype), tile.empty((B, H, S), tile.f32)
    for bm, h, b in tile.grid(tile.ceildiv(S, BM), H, B):
        q, k, v = tile.shared((BM, D), Q.dtype), tile.shared((BN, D), K.dtype), tile.shared((BN, D), V.dtype)
        s, p = tile.fragment((BM, BN), tile.f32), tile.fragment((BM, BN), Q.dtype)
        o = tile.fragment((BM, D), tile.f32, fill=0)
        m, shrink, total = softmax_state(BM)
        g = h // (H // G)
        tile.copy(Q[b, bm * BM :, h, :], q)
        limit = max(min(T, (bm + 1) * BM + T - S), 0) if causal else T
        start = max(bm * BM + T - S - window + 1, 0) // BN if window > 0 else 0
        for j in tile.pipelined(start, tile.ceildiv(limit, BN), stages=stages):
            tile.copy(K[b, j * BN :, g, :], k)
            tile.copy(V[b, j * BN :, g, :], v)
            tile.gemm(q, k.T, s, clear=True)
            for x, y in tile.parallel(BM, BN):
                seen = j * BN + y < T and (not causal or j * BN + y <= bm * BM + x + T - S)
                near = window == 0 or j * BN + y > bm * BM + x + T - S - window
                s[x, y] = s[x, y] if seen and near else -tile.inf
            online_softmax(s, scale * LOG2E, m, shrink, total, o)
            tile.copy(s, p)
            tile.gemm(p, v, o)
        finish(o, scale * LOG2E, m, total)
        tile.copy(o, Y[b, bm * BM :, h, :])
        tile.copy(m, L[b, h, bm * BM :])
    return Y, L
