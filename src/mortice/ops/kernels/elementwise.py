"""Row by row: gated activations, rotary position embedding, softmax."""

from typing import Any

from mortice import tile
from mortice.ops.kernels.softmax import LOG2E


@tile.kernel
def swiglu(GU: tile.Tensor, *, BI: int = 1024) -> Any:
    """Y [T, I] = silu(gate) * up of GU [T, 2 I], the gate in the first half (arXiv 2002.05202)."""
    T, W = GU.shape
    assert W % 2 == 0, "W % 2 == 0"
    Y = tile.empty((T, W // 2), GU.dtype)
    for b, t in tile.grid(tile.ceildiv(W // 2, BI), T):
        for i in tile.parallel(BI):
            gate = GU[t, b * BI + i]  # what lies beyond the gates is dropped with its result
            Y[t, b * BI + i] = gate * tile.sigmoid(gate) * GU[t, W // 2 + b * BI + i]
    return Y


@tile.kernel
def geglu(GU: tile.Tensor) -> Any:
    """Y [T, I] = gelu(gate) * up of GU [T, 2 I], the gate in the first half, gelu by its tanh approximation
    (arXiv 1606.08415)."""
    T, W = GU.shape
    assert W % 2 == 0, "W % 2 == 0"
    Y = tile.empty((T, W // 2), GU.dtype)
    for t, i in tile.parallel(T, W // 2):
        x = GU[t, i]
        bell = 1.0 + tile.tanh(0.7978845608 * (x + 0.044715 * x * x * x))
        Y[t, i] = 0.5 * x * bell * GU[t, W // 2 + i]
    return Y


@tile.kernel
def rotary(X: tile.Tensor, cos: tile.Tensor, sin: tile.Tensor) -> Any:
    """Y [T, H, D]: features i and i + D / 2 of X turned by the angle of row t, whose cosine and sine are cos, sin [T, D / 2]
    (arXiv 2104.09864)."""
    T, H, D = X.shape
    T, half = cos.shape
    T, half = sin.shape
    assert half * 2 == D, "cos and sin have D / 2 columns"
    Y = tile.empty((T, H, D), X.dtype)
    for t in tile.grid(T):
        c, s = tile.fragment((half,), tile.f32), tile.fragment((half,), tile.f32)
        tile.copy(cos[t, :], c)
        tile.copy(sin[t, :], s)
        for h in range(H):
            for i in tile.parallel(half):
                x, y = X[t, h, i], X[t, h, half + i]
                Y[t, h, i] = x * c[i] - y * s[i]
                Y[t, h, half + i] = y * c[i] + x * s[i]
    return Y


@tile.kernel
def softmax(X: tile.Tensor, *, rows: int = 4) -> Any:
    """Y [N, D]: the softmax of each row; a row of -inf alone gives 0."""
    N, D = X.shape
    Y = tile.empty((N, D), X.dtype)
    for b in tile.grid(tile.ceildiv(N, rows)):
        x = tile.fragment((rows, D), tile.f32)
        top, total = tile.fragment((rows,), tile.f32), tile.fragment((rows,), tile.f32)
        tile.copy(X[b * rows :, :], x)
        tile.reduce_max(x, top, axis=1)
        for i, d in tile.parallel(rows, D):
            x[i, d] = tile.exp2((x[i, d] - top[i]) * LOG2E) if top[i] > -tile.inf else 0.0
        tile.reduce_sum(x, total, axis=1)
        for i, d in tile.parallel(rows, D):
            x[i, d] = x[i, d] / total[i] if total[i] > 0 else 0.0
        tile.copy(x, Y[b * rows :, :])
    return Y
