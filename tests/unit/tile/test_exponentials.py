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


@tile.kernel
def curves(X: tile.Tensor, *, bell: bool = False):
    (N,) = X.shape
    Y = tile.empty((N,), X.dtype)
    for i in tile.parallel(N):
        Y[i] = tile.tanh(X[i]) if bell else tile.sigmoid(X[i])
    return Y


@pytest.mark.parametrize("bell", [True, False])
def test_sigmoid_and_tanh(bell):
    x = np.concatenate([np.linspace(-12, 12, 999), [0.05, -0.05, 1e-6, -1e-6, 100, -100, np.inf, -np.inf]])
    x = x.astype(np.float32)
    wide = x.astype(np.float64)
    with np.errstate(over="ignore"):
        expected = np.tanh(wide) if bell else 1 / (1 + np.exp(-wide))
    np.testing.assert_allclose(curves(x, bell=bell), expected, rtol=2e-6, atol=1e-12)
    assert np.isnan(curves(np.array([np.nan], np.float32), bell=bell)).all()


@tile.kernel
def halves(X: tile.Tensor, *, to: tile.DType = tile.f16):
    (N,) = X.shape
    Y = tile.empty((N,), to)
    for i in tile.parallel(N):
        Y[i] = X[i]
    return Y


def test_every_half_and_every_rounding_of_one():
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    wide = halves(every, to=tile.f32)
    np.testing.assert_array_equal(wide, every.astype(np.float32))
    finite = np.sort(wide[np.isfinite(wide)])
    middles = ((finite[1:].astype(np.float64) + finite[:-1]) / 2).astype(np.float32)
    around = np.concatenate(
        [middles, np.nextafter(middles, np.float32(9e9)), np.nextafter(middles, np.float32(-9e9))]
    )
    ends = np.array(
        [65519.9, 65520, 7e4, -7e4, np.inf, -np.inf, np.nan, 1e-9, -1e-9, 2**-25, 3 * 2**-25], np.float32
    )
    with np.errstate(over="ignore"):
        for x in (around, ends):
            np.testing.assert_array_equal(halves(x), x.astype(np.float16))
