"""Gradients of attention: probabilities come again from the scores and the log-sum-exps (FlashAttention-2, arXiv 2307.08691,
algorithm 2). `attention_backward` is the one to use: one pass by keys that adds to dQ as it goes. The two passes,
`attention_delta` with `attention_backward_keys` and `attention_backward_queries`, make seven products where five are needed
(0.91 to 0.93 of its speed on an H200); no two blocks add to one place, so their results are the same bits each time."""

from typing import Any

from mortice import tile
from mortice.ops.kernels.softmax import LOG2E


@tile.inline
def row_products(Y: Any, dY: Any, b: Any, s: Any, delta: Any) -> Any:
    """delta [B, H, S] at (b, s): the dot products of the rows of Y and dY [B, S, H, D]."""
    heads, width = Y.shape[2], Y.shape[3]
    product, total = tile.fragment((heads, width), tile.f32), tile.fragment((heads,), tile.f32)
    for h, d in tile.parallel(heads, width):
        product[h, d] = Y[b, s, h, d] * dY[b, s, h, d]
    tile.reduce_sum(product, total, axis=1)
    for h in tile.parallel(heads):
        delta[b, h, s] = total[h]


@tile.inline
def probabilities(s: Any, sums: Any, scale: Any, key: Any, query: Any, T: Any, S: Any, causal: Any) -> Any:
    """s [keys, queries], scores from these on, becomes their probabilities; sums: log-sum-exps of the queries."""
    for y, x in tile.parallel(s.shape[0], s.shape[1]):
        inside = query + x < S and key + y < T
        seen = inside and (not causal or key + y <= query + x + T - S)
        s[y, x] = tile.exp2(s[y, x] * (scale * LOG2E) - sums[x] * LOG2E) if seen else 0.0


@tile.inline
def store_gradients(dk: Any, dv: Any, scale: Any, dK: Any, dV: Any, b: Any, key: Any, g: Any) -> Any:
    """Of the keys and values of one block."""
    for y, d in tile.parallel(dk.shape[0], dk.shape[1]):
        dk[y, d] = dk[y, d] * scale
    tile.copy(dk, dK[b, key:, g, :])
    tile.copy(dv, dV[b, key:, g, :])


@tile.kernel
def attention_delta(Y: tile.Tensor, dY: tile.Tensor) -> Any:
    """[B, H, S] f32: the dot products of the rows of Y and dY [B, S, H, D]."""
    B, S, H, D = Y.shape
    B, S, H, D = dY.shape  # noqa: RUF059 - it names a dimension
    delta = tile.empty((B, H, S), tile.f32)
    for s, b in tile.grid(S, B):
        row_products(Y, dY, b, s, delta)
    return delta


@tile.kernel
def attention_backward_keys(
    Q: tile.Tensor,
    K: tile.Tensor,
    V: tile.Tensor,
    dY: tile.Tensor,
    L: tile.Tensor,
    delta: tile.Tensor,
    scale: float,
    *,
    causal: bool = False,
    BM: int = 64,
    BN: int = 128,
    stages: int = 2,
) -> Any:
    """dK and dV [B, T, G, D]. Shapes as of `attention`; L its log-sum-exps, delta of `attention_delta`, both [B, H, S]."""
    B, S, H, D = Q.shape
    B, T, G, D = K.shape
    B, T, G, D = V.shape
    B, S, H, D = dY.shape
    B, H, S = L.shape
    B, H, S = delta.shape
    assert H % G == 0, "H % G == 0"
    dK, dV = tile.empty((B, T, G, D), K.dtype), tile.empty((B, T, G, D), V.dtype)
    for bn, g, b in tile.grid(tile.ceildiv(T, BN), G, B):
        k, v = tile.shared((BN, D), K.dtype), tile.shared((BN, D), V.dtype)
        q, dy = tile.shared((BM, D), Q.dtype), tile.shared((BM, D), dY.dtype)
        sums, deltas = tile.shared((BM,), tile.f32), tile.shared((BM,), tile.f32)
        s, dp = tile.fragment((BN, BM), tile.f32), tile.fragment((BN, BM), tile.f32)
        p, ds = tile.fragment((BN, BM), Q.dtype), tile.fragment((BN, BM), Q.dtype)
        dk, dv = tile.fragment((BN, D), tile.f32, fill=0), tile.fragment((BN, D), tile.f32, fill=0)
        tile.copy(K[b, bn * BN :, g, :], k)
        tile.copy(V[b, bn * BN :, g, :], v)
        start = max(bn * BN - (T - S), 0) // BM if causal else 0
        for r in range(H // G):
            h = g * (H // G) + r
            for j in tile.pipelined(start, tile.ceildiv(S, BM), stages=stages):
                tile.copy(Q[b, j * BM :, h, :], q)
                tile.copy(dY[b, j * BM :, h, :], dy)
                tile.copy(L[b, h, j * BM :], sums)
                tile.copy(delta[b, h, j * BM :], deltas)
                # Scores turned round: keys in the rows, as dK and dV have them.
                tile.gemm(k, q.T, s, clear=True)
                tile.gemm(v, dy.T, dp, clear=True)
                probabilities(s, sums, scale, bn * BN, j * BM, T, S, causal)
                tile.copy(s, p)
                tile.gemm(p, dy, dv)
                for y, x in tile.parallel(BN, BM):
                    dp[y, x] = s[y, x] * (dp[y, x] - deltas[x])
                tile.copy(dp, ds)
                tile.gemm(ds, q, dk)
        store_gradients(dk, dv, scale, dK, dV, b, bn * BN, g)
    return dK, dV


@tile.kernel
def attention_backward_queries(
    Q: tile.Tensor,
    K: tile.Tensor,
    V: tile.Tensor,
    dY: tile.Tensor,
    L: tile.Tensor,
    delta: tile.Tensor,
    scale: float,
    *,
    causal: bool = False,
    BM: int = 128,
    BN: int = 64,
    stages: int = 2,
) -> Any:
    """dQ [B, S, H, D]; arguments as of `attention_backward_keys`."""
    B, S, H, D = Q.shape
    B, T, G, D = K.shape
    B, T, G, D = V.shape
    B, S, H, D = dY.shape
    B, H, S = L.shape
    B, H, S = delta.shape
    assert H % G == 0, "H % G == 0"
    dQ = tile.empty((B, S, H, D), Q.dtype)
    for bm, h, b in tile.grid(tile.ceildiv(S, BM), H, B):
        q, dy = tile.shared((BM, D), Q.dtype), tile.shared((BM, D), dY.dtype)
        k, v = tile.shared((BN, D), K.dtype), tile.shared((BN, D), V.dtype)
        s, dp = tile.fragment((BM, BN), tile.f32), tile.fragment((BM, BN), tile.f32)
        ds = tile.fragment((BM, BN), Q.dtype)
        dq = tile.fragment((BM, D), tile.f32, fill=0)
        sums, deltas = tile.fragment((BM,), tile.f32), tile.fragment((BM,), tile.f32)
        tile.copy(L[b, h, bm * BM :], sums)
        tile.copy(delta[b, h, bm * BM :], deltas)
        tile.copy(Q[b, bm * BM :, h, :], q)
        tile.copy(dY[b, bm * BM :, h, :], dy)
        limit = max(min(T, (bm + 1) * BM + T - S), 0) if causal else T
        for j in tile.pipelined(tile.ceildiv(limit, BN), stages=stages):
            tile.copy(K[b, j * BN :, h // (H // G), :], k)
            tile.copy(V[b, j * BN :, h // (H // G), :], v)
            tile.gemm(q, k.T, s, clear=True)
            tile.gemm(dy, v.T, dp, clear=True)
            for x, y in tile.parallel(BM, BN):
                seen = j * BN + y < T and (not causal or j * BN + y <= bm * BM + x + T - S)
                s[x, y] = tile.exp2(s[x, y] * (scale * LOG2E) - sums[x] * LOG2E) if seen else 0.0
                dp[x, y] = s[x, y] * (dp[x, y] - deltas[x])
            tile.copy(dp, ds)
            tile.gemm(ds, k, dq)
        for x, d in tile.parallel(BM, D):
            dq[x, d] = dq[x, d] * scale
        tile.copy(dq, dQ[b, bm * BM :, h, :])
    return dQ


@tile.kernel
def attention_backward(
    Q: tile.Tensor,
    K: tile.Tensor,
    V: tile.Tensor,
    Y: tile.Tensor,
    dY: tile.Tensor,
    L: tile.Tensor,
    scale: float,
    *,
    causal: bool = False,
    BM: int = 64,
    BN: int = 128,
    stages: int = 2,
) -> Any:
    """dQ, dK, dV in one pass over the scores, and its two workspaces: A [B, S, H, D] f32, to which the blocks of keys add
    their parts of dQ (in no order: sums differ in the last bits from call to call), and delta [B, H, S] f32."""
    B, S, H, D = Q.shape
    B, T, G, D = K.shape
    B, T, G, D = V.shape
    B, S, H, D = Y.shape
    B, S, H, D = dY.shape
    B, H, S = L.shape
    assert H % G == 0, "H % G == 0"
    dQ = tile.empty((B, S, H, D), Q.dtype)
    dK, dV = tile.empty((B, T, G, D), K.dtype), tile.empty((B, T, G, D), V.dtype)
    A, delta = tile.empty((B, S, H, D), tile.f32), tile.empty((B, H, S), tile.f32)
    for s, b in tile.grid(S, B):
        row_products(Y, dY, b, s, delta)
        for h, d in tile.parallel(H, D):
            A[b, s, h, d] = 0.0
    for bn, g, b in tile.grid(tile.ceildiv(T, BN), G, B):
        k, v = tile.shared((BN, D), K.dtype), tile.shared((BN, D), V.dtype)
        q, dy = tile.shared((BM, D), Q.dtype), tile.shared((BM, D), dY.dtype)
        sums, deltas = tile.shared((BM,), tile.f32), tile.shared((BM,), tile.f32)
        s, dp = tile.fragment((BN, BM), tile.f32), tile.fragment((BN, BM), tile.f32)
        p, ds = tile.fragment((BN, BM), Q.dtype), tile.fragment((BN, BM), Q.dtype)
        across = tile.shared((BN, BM), Q.dtype)
        dk, dv = tile.fragment((BN, D), tile.f32, fill=0), tile.fragment((BN, D), tile.f32, fill=0)
        dq = tile.fragment((BM, D), tile.f32)
        tile.copy(K[b, bn * BN :, g, :], k)
        tile.copy(V[b, bn * BN :, g, :], v)
        start = max(bn * BN - (T - S), 0) // BM if causal else 0
        for r in range(H // G):
            h = g * (H // G) + r
            for j in tile.pipelined(start, tile.ceildiv(S, BM), stages=stages):
                tile.copy(Q[b, j * BM :, h, :], q)
                tile.copy(dY[b, j * BM :, h, :], dy)
                tile.copy(L[b, h, j * BM :], sums)
                tile.copy(delta[b, h, j * BM :], deltas)
                tile.gemm(k, q.T, s, clear=True)
                tile.gemm(v, dy.T, dp, clear=True)
                probabilities(s, sums, scale, bn * BN, j * BM, T, S, causal)
                tile.copy(s, p)
                tile.gemm(p, dy, dv)
                for y, x in tile.parallel(BN, BM):
                    dp[y, x] = s[y, x] * (dp[y, x] - deltas[x])
                tile.copy(dp, ds)
                tile.copy(dp, across)
                tile.gemm(across.T, k, dq, clear=True)
                tile.gemm(ds, q, dk)
                tile.atomic_add(A[b, j * BM :, h, :], dq)
        store_gradients(dk, dv, scale, dK, dV, b, bn * BN, g)
    for s, b in tile.grid(S, B):
        part = tile.fragment((H, D), tile.f32)
        tile.copy(A[b, s, :, :], part)
        for h, d in tile.parallel(H, D):
            part[h, d] = part[h, d] * scale
        tile.copy(part, dQ[b, s, :, :])
    return dQ, dK, dV, A, delta
