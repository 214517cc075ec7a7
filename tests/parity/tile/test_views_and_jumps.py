"""Views of other element types, and `break` and `continue`, on every CPU target."""

import numpy as np
import pytest
import torch

from mortice import tile

TARGETS = ("interpreter", "c")


@tile.kernel
def unpack(W: tile.Tensor, *, kind: tile.DType = tile.u4):
    N, _ = W.shape
    V = tile.view(W, kind)
    N, K = V.shape
    Y = tile.empty((N, K), tile.f32)
    for n, k in tile.parallel(N, K):
        Y[n, k] = V[n, k]
    return Y


FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def expected(w: np.ndarray, kind: tile.DType) -> np.ndarray:
    parts = 8 // kind.bits
    codes = np.stack([(w >> (kind.bits * i)) & (2**kind.bits - 1) for i in range(parts)], -1).reshape(
        len(w), -1
    )
    if kind == tile.e2m1:
        return np.concatenate([FP4, -FP4])[codes]
    values = codes.astype(np.int32)
    half = 2 ** (kind.bits - 1)
    return np.where(values >= half, values - 2 * half, values) if kind.kind == "i" else values


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", [tile.u4, tile.i4, tile.u2, tile.i2, tile.u1, tile.e2m1], ids=str)
def test_every_code_of_every_type_under_a_byte(target, kind):
    w = np.arange(256, dtype=np.uint8).reshape(4, 64)
    np.testing.assert_array_equal(unpack.on(target)(w, kind=kind), expected(w, kind))


@tile.kernel
def weight_only(X: tile.Tensor, W: tile.Tensor, S: tile.Tensor, *, BN: int = 32, BK: int = 32):
    M, K = X.shape
    N, _ = W.shape
    (N,) = S.shape
    V = tile.view(W, tile.i4)
    Y = tile.empty((M, N), tile.f32)
    for bn, bm in tile.grid(tile.ceildiv(N, BN), tile.ceildiv(M, 16)):
        x, w = tile.shared((16, BK), X.dtype), tile.shared((BN, BK), X.dtype)
        y = tile.fragment((16, BN), tile.f32, fill=0)
        for k in tile.pipelined(tile.ceildiv(K, BK)):
            tile.copy(X[bm * 16 :, k * BK :], x)
            tile.copy(V[bn * BN :, k * BK :], w)
            tile.gemm(x, w.T, y)
        for i, j in tile.parallel(16, BN):
            y[i, j] = y[i, j] * S[bn * BN + j]
        tile.copy(y, Y[bm * 16 :, bn * BN :])
    return Y


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("m", "n", "k"), [(3, 5, 14), (17, 33, 70)])
def test_weights_of_four_bits_in_a_product(target, m, n, k):
    draw = np.random.default_rng(n)
    x, s = draw.standard_normal((m, k), np.float32), draw.standard_normal(n, np.float32)
    w = draw.integers(0, 256, (n, k // 2)).astype(np.uint8)
    wanted = x @ (expected(w, tile.i4).astype(np.float32) * s[:, None]).T
    found = weight_only.on(target)(x, w, s)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)


@tile.kernel
def bits(X: tile.Tensor, H: tile.Tensor, Y: tile.Tensor, Z: tile.Tensor):
    (N,) = X.shape
    (N,) = H.shape
    (N,) = Y.shape
    (N,) = Z.shape
    whole, halves, into = tile.view(X, tile.i32), tile.view(H, tile.bf16), tile.view(Z, tile.i32)
    for i in tile.parallel(N):
        into[i] = whole[i] & 0x7FFFFFFF
        Y[i] = halves[i]


@pytest.mark.parametrize("target", TARGETS)
def test_bits_of_equal_width(target):
    x = torch.randn(37)
    h = torch.randn(37).bfloat16()
    y, z = torch.zeros(37), torch.zeros(37)
    bits.on(target)(x, h.view(torch.uint16), y, z)
    assert torch.equal(z, x.abs())
    assert torch.equal(y, h.float())


def wrong_pair(X: tile.Tensor):
    V = tile.view(X, tile.e4m3)
    for i in tile.parallel(1):
        X[i] = V[i]


def stored_nibble(W: tile.Tensor):
    V = tile.view(W, tile.u4)
    for i in tile.parallel(1):
        V[i] = 1


def filled_view(W: tile.Tensor):
    V = tile.view(W, tile.u4)
    for _ in tile.grid(1):
        tile.fill(V[0:2], 1)


def broken_parallel(W: tile.Tensor):
    for i in tile.parallel(4):
        if i == 2:
            break


def broken_pipeline(W: tile.Tensor):
    for _ in tile.grid(1):
        for k in tile.pipelined(4):
            if k == 2:
                break


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (wrong_pair, ["view", "u8 is not seen as e4m3"]),
        (stored_nibble, ["share a u8"]),
        (filled_view, ["fill", "V is a view"]),
        (broken_parallel, ["break", "no order"]),
        (broken_pipeline, ["break", "run ahead"]),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_what_cannot_be_is_refused_with_its_line(function, words):
    with pytest.raises(tile.TileError) as caught:
        tile.kernel(function).ir(np.zeros(8, np.uint8))
    assert str(caught.value).startswith(__file__)
    for word in words:
        assert word in str(caught.value)


@tile.kernel
def jumping(X: tile.Tensor, limit: float):
    N, D = X.shape
    Y = tile.empty((N, 4), tile.f32)
    for n in tile.grid(N):
        if n == 1:
            continue
        total, seen, odd = 0.0, 0, 0.0
        for d in range(D):
            if X[n, d] < 0:
                continue
            if total > limit:
                break
            total = total + X[n, d]
            seen += 1
        at = 0
        while at < D:
            at += 1
            if at % 2 == 0:
                continue
            odd += X[n, at - 1]
            if odd > limit:
                break
        Y[n, 0] = total
        Y[n, 1] = seen
        Y[n, 2] = odd
        last = 0.0
        for i in (0, 1, 2):
            if X[n, i] > 0:
                last = X[n, i]
                break
        Y[n, 3] = last
    return Y


@tile.kernel
def lanes(X: tile.Tensor):
    N, D = X.shape
    Y = tile.empty((N,), tile.f32)
    for b in tile.grid(tile.ceildiv(N, 8)):
        for i in tile.parallel(8):
            row = b * 8 + i
            if row >= N:
                continue
            total = 0.0
            for d in range(D):
                if X[row, d] > 1:
                    break
                total += X[row, d]
            Y[row] = total
    return Y


@pytest.mark.parametrize("target", TARGETS)
def test_break_and_continue(target):
    x = np.random.default_rng(0).standard_normal((5, 9), np.float32)
    y = np.full((5, 4), 7, np.float32)
    jumping.on(target)(x, 2.0, out=y)
    for n in range(5):
        if n == 1:
            assert (y[n] == 7).all()
            continue
        total, seen, odd = np.float32(0), 0, np.float32(0)
        for d in range(9):
            if x[n, d] < 0:
                continue
            if total > 2:
                break
            total, seen = total + x[n, d], seen + 1
        for d in range(0, 9, 2):
            odd += x[n, d]
            if odd > 2:
                break
        last = next((x[n, i] for i in range(3) if x[n, i] > 0), 0)
        np.testing.assert_allclose(y[n], [total, seen, odd, last], rtol=1e-6)
    wanted = [float(row[: np.argmax(row > 1)].sum() if (row > 1).any() else row.sum()) for row in x]
    np.testing.assert_allclose(lanes.on(target)(x), wanted, rtol=1e-5, atol=1e-6)
