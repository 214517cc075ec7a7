"""To and from eight bits, one scale a group of a row's columns."""

from typing import Any

from mortice import tile


@tile.kernel
def quantize(X: tile.Tensor, *, to: tile.DType = tile.e4m3, group: int = 128) -> Any:
    """Q [M, K] fp8 or i8 and S [M, ceil(K / group)] f32, X close to Q S: the largest magnitude of a group takes the largest
    number (448, 57344, 127). A group of zeros has scale 0."""
    M, K = X.shape
    Q, S = tile.empty((M, K), to), tile.empty((M, tile.ceildiv(K, group)), tile.f32)
    largest = 448.0 if to is tile.e4m3 else 57344.0 if to is tile.e5m2 else 127.0
    for g, m in tile.grid(tile.ceildiv(K, group), M):
        x, top = tile.fragment((1, group), tile.f32), tile.fragment((1,), tile.f32)
        tile.copy(X[m : m + 1, g * group :], x)
        tile.reduce_absmax(x, top, axis=1)
        scale = top[0] / largest
        for r, i in tile.parallel(1, group):
            value = x[r, i] / scale if scale > 0 else 0.0
            if to.kind == "f":
                Q[m, g * group + i] = value
            else:
                Q[m, g * group + i] = tile.i32(tile.floor(min(max(value, -127.0), 127.0) + 0.5))
        S[m, g] = scale
    return Q, S


@tile.kernel
def dequantize(Q: tile.Tensor, S: tile.Tensor, *, to: tile.DType = tile.bf16, group: int = 128) -> Any:
    """X [M, K] = Q [M, K] times S [M, ceil(K / group)]."""
    M, K = Q.shape
    M, G = S.shape
    assert tile.ceildiv(K, group) == G, "S has ceildiv(K, group) columns"
    X = tile.empty((M, K), to)
    for g, m in tile.grid(G, M):
        for i in tile.parallel(group):
            if g * group + i < K:
                X[m, g * group + i] = tile.f32(Q[m, g * group + i]) * S[m, g]
    return X
