"""Choice of a token: temperature, top-k, top-p."""

from typing import Any

from mortice import tile


@tile.kernel
def sample(X: tile.Tensor, U: tile.Tensor, temperature: float, top_k: int, top_p: float) -> Any:
    """Tokens I [B] i32 of logits X [B, V]: softmax of X / temperature; of it the smallest set of most likely tokens
    with probability of at least top_p, and of those at most top_k (0: all; equals of the last stay); then the token
    where the running sum passes U [B], uniform in [0, 1). The bound of the set and the token are found by halving an
    interval, without sorting."""
    B, V = X.shape
    (B,) = U.shape
    I = tile.empty((B,), tile.i32)  # noqa: E741
    for b in tile.grid(B):
        p, kept = tile.fragment((1, V), tile.f32), tile.fragment((1, V), tile.f32)
        top, total, mass = (
            tile.fragment((1,), tile.f32),
            tile.fragment((1,), tile.f32),
            tile.fragment((1,), tile.f32),
        )
        tile.copy(X[b : b + 1, :], p)
        tile.reduce_max(p, top, axis=1)
        for r, v in tile.parallel(1, V):
            p[r, v] = tile.exp((p[r, v] - top[r]) / temperature)
        tile.reduce_sum(p, total, axis=1)
        low, high, low_k, high_k = 0.0, 1.0, 0.0, 1.0
        for _ in range(40):
            middle = (low + high) * 0.5
            middle_k = (low_k + high_k) * 0.5
            for r, v in tile.parallel(1, V):
                kept[r, v] = p[r, v] if p[r, v] >= middle else 0.0
            tile.reduce_sum(kept, mass, axis=1)
            if mass[0] >= top_p * total[0]:
                low = middle
            else:
                high = middle
            for r, v in tile.parallel(1, V):
                kept[r, v] = 1.0 if p[r, v] >= middle_k else 0.0
            tile.reduce_sum(kept, mass, axis=1)
            if mass[0] > tile.f32(top_k):
                low_k = middle_k
            else:
                high_k = middle_k
        bound = max(low, high_k) if top_k > 0 else low
        for r, v in tile.parallel(1, V):
            kept[r, v] = p[r, v] if p[r, v] >= bound or p[r, v] == 1.0 else 0.0
        tile.reduce_sum(kept, total, axis=1)
        goal = U[b] * total[0]
        before, token = 0, V - 1  # the first token up to which the sum passes the goal, by halving
        while before < token:
            half = (before + token) // 2
            for r, v in tile.parallel(1, V):
                p[r, v] = kept[r, v] if v <= half else 0.0
            tile.reduce_sum(p, mass, axis=1)
            if mass[0] > goal:
                token = half
            else:
                before = half + 1
        I[b] = tile.i32(token)
    return I
