"""exp and exp2 of compiled kernels at their ends, against float64: both forms, infinities, the smallest numbers."""

import numpy as np
import pytest

from mortice import tile

ENDS = [
    0.0,
    1.0,
    -1.0,
    88.0,
    -87.0,
    -100.0,
    -103.0,
    126.5,
    -126.5,
    -148.0,
    np.inf,
    -np.inf,
    np.nan,
    1e9,
    -1e9,
    1e-30,
]


@tile.kernel
def powers(X: tile.Tensor, *, base2: bool = False):
    (N,) = X.shape
    Y = tile.empty((N,), X.dtype)
    for b in tile.grid(tile.ceildiv(N, 64)):
        for i in tile.parallel(64):
            Y[b * 64 + i] = tile.exp2(X[b * 64 + i]) if base2 else tile.exp(X[b * 64 + i])
    return Y


@pytest.mark.parametrize("base2", [True, False])
@pytest.mark.parametrize("count", [1, 7, 64, 100])
def test_powers(count, base2):
    x = np.resize(np.array(ENDS, np.float32), count)
    with np.errstate(over="ignore", under="ignore"):
        expected = (np.exp2 if base2 else np.exp)(x.astype(np.float64)).astype(np.float32)
    found = powers(x, base2=base2)
    finite = np.isfinite(expected)
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert np.array_equal(np.isinf(found), np.isinf(expected))
    assert (
        np.abs(found[finite] - expected[finite]) <= np.maximum(3e-7 * np.abs(expected[finite]), 3e-45)
    ).all()
