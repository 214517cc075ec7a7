"""Softmax of a row whose scores pass in tiles: the running maximum and sum, in base 2 (arXiv 2205.14135, algorithm 1)."""

import math
from typing import Any

from mortice import tile

LOG2E = math.log2(math.e)


@tile.inline
def softmax_state(rows: Any) -> Any:
    """Maximum so far, the factor by which old sums shrink, sum so far: [rows] each."""
    m = tile.fragment((rows,), tile.f32, fill=-tile.inf)
    shrink = tile.fragment((rows,), tile.f32)
    total = tile.fragment((rows,), tile.f32, fill=0)
    return m, shrink, total


@tile.inline
def online_softmax(s: Any, scale: Any, m: Any, shrink: Any, total: Any, o: Any) -> Any:
    """s [rows, columns], scores, becomes 2^(scale s - maximum); m holds maxima of scores as they are, so that the scale
    (above 0) costs one fused multiply-add. o [rows, D] shrinks to the new maximum."""
    shift = tile.fragment((s.shape[0],), tile.f32)
    tile.copy(m, shrink)
    tile.reduce_max(s, m, axis=1, clear=False)
    for x in tile.parallel(s.shape[0]):
        shift[x] = m[x] * scale if m[x] > -tile.inf else 0.0  # a row without keys: 2^(-inf - 0) is 0
        shrink[x] = tile.exp2(shrink[x] * scale - shift[x])
        total[x] = total[x] * shrink[x]
    for x, y in tile.parallel(s.shape[0], s.shape[1]):
        s[x, y] = tile.exp2(s[x, y] * scale - shift[x])
    tile.reduce_sum(s, total, axis=1, clear=False)
    for x, y in tile.parallel(o.shape[0], o.shape[1]):
        o[x, y] = o[x, y] * shrink[x]


@tile.inline
def finish(o: Any, scale: Any, m: Any, total: Any) -> Any:
    """o becomes the weighted mean, m the logarithm (base e) of the sum of exponentials; a row without keys 0, -inf."""
    for x, y in tile.parallel(o.shape[0], o.shape[1]):
        o[x, y] = o[x, y] / total[x] if total[x] > 0 else 0.0
    for x in tile.parallel(o.shape[0]):
        m[x] = m[x] * (scale / LOG2E) + tile.log(total[x]) if total[x] > 0 else -tile.inf
