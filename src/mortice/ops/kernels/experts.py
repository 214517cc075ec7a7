"""Around the experts of a mixture: choice, gathering rows by expert, bringing them back."""

from typing import Any

from mortice import tile


@tile.kernel
def topk_gate(X: tile.Tensor, *, k: int = 8, renormalize: bool = True) -> Any:
    """Weights W [T, k] f32 and experts I [T, k] i32 of logits X [T, E]: softmax, the k largest in falling order (the
    lower number of equals first), divided by their sum if renormalize."""
    T, E = X.shape
    W, I = tile.empty((T, k), tile.f32), tile.empty((T, k), tile.i32)  # noqa: E741
    for t in tile.grid(T):
        x, at = tile.fragment((1, E), tile.f32), tile.fragment((1, E), tile.i32)
        top, total = tile.fragment((1,), tile.f32), tile.fragment((1,), tile.f32)
        first, chosen = tile.fragment((1,), tile.i32), tile.fragment((1,), tile.f32, fill=0)
        tile.copy(X[t : t + 1, :], x)
        tile.reduce_max(x, top, axis=1)
        for r, e in tile.parallel(1, E):
            x[r, e] = tile.exp(x[r, e] - top[r])
        tile.reduce_sum(x, total, axis=1)
        for j in range(min(k, E)):
            tile.reduce_max(x, top, axis=1)
            for r, e in tile.parallel(1, E):
                at[r, e] = tile.i32(e) if x[r, e] == top[r] else tile.i32(E)
            tile.reduce_min(at, first, axis=1)
            W[t, j] = top[0] / total[0]
            I[t, j] = min(first[0], tile.i32(E - 1))
            chosen[0] = chosen[0] + top[0] / total[0]
            for r, e in tile.parallel(1, E):
                x[r, e] = -1.0 if e == first[r] else x[r, e]
        if renormalize:
            for j in tile.parallel(k):
                W[t, j] = W[t, j] / chosen[0]
    return W, I


@tile.kernel
def permute(X: tile.Tensor, rows: tile.Tensor, *, BD: int = 1024) -> Any:
    """Y [R, D]: row rows[r] of X [T, D], rows [R] i32. A number outside X gives a row of zeros."""
    _, D = X.shape
    (R,) = rows.shape
    Y = tile.empty((R, D), X.dtype)
    for b, r in tile.grid(tile.ceildiv(D, BD), R):
        tile.copy(X[rows[r], b * BD : b * BD + BD], Y[r, b * BD : b * BD + BD])
    return Y


@tile.kernel
def unpermute(Y: tile.Tensor, places: tile.Tensor, weights: tile.Tensor, *, BD: int = 1024) -> Any:
    """X [T, D] = the sum over j of weights[t, j] times row places[t, j] of Y [R, D]; places [T, k] i32, weights [T, k]
    f32."""
    _, D = Y.shape
    T, k = places.shape
    T, k = weights.shape
    X = tile.empty((T, D), Y.dtype)
    for b, t in tile.grid(tile.ceildiv(D, BD), T):
        x = tile.fragment((BD,), tile.f32, fill=0)
        for j in range(k):
            for d in tile.parallel(BD):
                x[d] = x[d] + weights[t, j] * Y[places[t, j], b * BD + d]
        tile.copy(x, X[t, b * BD :])
    return X
