"""Kernels that say only what is computed, on every target, against NumPy: whatever form the compiler gives them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mortice import tile
from mortice.tile.passes.tiling import CPU, decisions

TARGETS = ("interpreter", "c")
sizes = st.sampled_from([1, 3, 5, 33, 64, 70])
few = settings(max_examples=4, deadline=None, derandomize=True)


@tile.kernel
def matmul(A: tile.Tensor, B: tile.Tensor):
    M, K = A.shape
    K, N = B.shape
    C = tile.empty((M, N), A.dtype)
    for m, n in tile.parallel(M, N):
        C[m, n] = tile.sum(A[m, k] * B[k, n] for k in range(K))
    return C


@tile.kernel
def batched(A: tile.Tensor, B: tile.Tensor, bias: tile.Tensor):
    Z, H, M, K = A.shape
    H, N, K = B.shape
    (N,) = bias.shape
    C = tile.empty((Z, M, H, N), tile.f32)
    for z, h, m, n in tile.parallel(Z, H, M, N):
        C[z, m, h, n] = max(sum(A[z, h, m, k] * B[h, n, k] for k in range(K)) + bias[n], 0.0)
    return C


@tile.kernel
def gated(X: tile.Tensor, G: tile.Tensor, U: tile.Tensor):
    M, K = X.shape
    K, N = G.shape
    K, N = U.shape
    Y = tile.empty((M, N), X.dtype)
    for m, n in tile.parallel(M, N):
        gate = tile.sum(X[m, k] * G[k, n] for k in range(K))
        up = tile.sum(X[m, k] * U[k, n] for k in range(K))
        Y[m, n] = gate * tile.sigmoid(gate) * up
    return Y


@tile.kernel
def quantised(X: tile.Tensor, W: tile.Tensor, S: tile.Tensor):
    M, K = X.shape
    N, K = W.shape
    (N,) = S.shape
    Y = tile.empty((M, N), X.dtype)
    for m, n in tile.parallel(M, N):
        Y[m, n] = tile.sum(X[m, k] * ((W[n, k] - 3) * S[n]) for k in range(K))
    return Y


@tile.kernel
def convolution(X: tile.Tensor, W: tile.Tensor):
    B, H, V, C = X.shape
    R, S, C, F = W.shape
    Y = tile.empty((B, H, V, F), X.dtype)
    for b, y, x, f in tile.parallel(B, H, V, F):
        Y[b, y, x, f] = sum(
            X[b, y + r - R // 2, x + s - S // 2, c] * W[r, s, c, f]
            for r in range(R)
            for s in range(S)
            for c in range(C)
        )
    return Y


@tile.kernel
def below_the_diagonal(A: tile.Tensor, B: tile.Tensor):
    M, K = A.shape
    K, N = B.shape
    C = tile.empty((M, N), A.dtype)
    for m, n in tile.parallel(M, N):
        C[m, n] = tile.sum(A[m, k] * B[k, n] for k in range(K) if k <= m)
    return C


@tile.kernel
def softmax(X: tile.Tensor):
    B, N, D = X.shape
    Y = tile.empty((B, N, D), X.dtype)
    for b, n in tile.parallel(B, N):
        top = tile.max(X[b, n, d] for d in range(D))
        total = tile.sum(tile.exp(X[b, n, d] - top) for d in range(D))
        for d in range(D):
            Y[b, n, d] = tile.exp(X[b, n, d] - top) / total
    return Y


@tile.kernel
def distances(A: tile.Tensor, B: tile.Tensor):
    M, K = A.shape
    K, N = B.shape
    D, E = tile.empty((M, N), A.dtype), tile.empty((M, N), A.dtype)
    for m, n in tile.parallel(M, N):
        D[m, n] = tile.sum(abs(A[m, k] - B[k, n]) for k in range(K))
    for m, n in tile.parallel(M, N):
        E[m, n] = tile.max(abs(A[m, k] - B[k, n]) for k in range(K) if k % 2 == 0)
    return D, E


@tile.kernel
def embed(ids: tile.Tensor, W: tile.Tensor, P: tile.Tensor):
    B, T = ids.shape
    _, D = W.shape
    T, D = P.shape
    Y = tile.empty((B, T, D), W.dtype)
    for b, t, d in tile.parallel(B, T, D):
        Y[b, t, d] = W[ids[b, t], d] + P[t, d]
    return Y


@tile.kernel
def running(X: tile.Tensor):
    N, D = X.shape
    Y = tile.empty((N, D), tile.f32)
    some = tile.empty((N,), tile.i32)
    for n in tile.parallel(N):
        state = 0.0
        for d in range(D):
            state = state * 0.5 + X[n, d]
            Y[n, d] = state
        some[n] = tile.i32(any(X[n, d] > 1 for d in range(D))) + 2 * tile.i32(
            all(X[n, d] > -1 for d in range(D))
        )
    return Y, some


@tile.kernel
def scaled(X: tile.Tensor, Y: tile.Tensor, a: float):
    (N,) = X.shape
    (N,) = Y.shape
    for i in tile.parallel(N):
        Y[i] = a * X[i] + Y[i]


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(found: np.ndarray, expected: np.ndarray) -> None:
    assert not np.isnan(found).any()
    np.testing.assert_allclose(
        found, expected, rtol=2e-4, atol=2e-4 * max(1.0, float(np.abs(expected).max()))
    )


@pytest.mark.parametrize("target", TARGETS)
@few
@given(sizes, sizes, st.sampled_from([0, 1, 5, 33, 300]))
def test_matrix_products(target, m, n, k):
    a, b = draw(m, m, k), draw(n, k, n)
    close(matmul.on(target)(a, b), a @ b)
    close(matmul.on(target)(a, b[:, ::-1][:, : (n + 1) // 2]), a @ b[:, ::-1][:, : (n + 1) // 2])
    close(below_the_diagonal.on(target)(a, b), np.tril(a) @ b)
    x, w, s = a, np.random.default_rng(k).integers(0, 8, (n, k)).astype(np.int8), draw(k, n)
    close(quantised.on(target)(x, w, s), x @ ((w.astype(np.float32) - 3) * s[:, None]).T)
    g, u = b, draw(m, k, n)
    with np.errstate(over="ignore"):
        close(gated.on(target)(a, g, u), (a @ g) / (1 + np.exp(-(a @ g))) * (a @ u))


@pytest.mark.parametrize("target", TARGETS)
@few
@given(st.sampled_from([1, 2]), st.sampled_from([1, 3]), sizes, sizes)
def test_batches_and_convolutions(target, z, h, m, n):
    a, b, bias = draw(0, z, h, m, 40), draw(1, h, n, 40), draw(2, n)
    close(batched.on(target)(a, b, bias), np.maximum(np.einsum("zhmk,hnk->zmhn", a, b) + bias, 0))
    x, w = draw(3, z, 6, 7, h), draw(4, 3, 3, h, n)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(w).permute(3, 2, 0, 1), padding=1
    )
    close(convolution.on(target)(x, w), expected.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize("target", TARGETS)
@few
@given(st.sampled_from([1, 2]), sizes, sizes)
def test_rows_columns_and_elements(target, b, n, d):
    x = draw(n, b, n, d)
    e = np.exp(x - x.max(-1, keepdims=True))
    close(softmax.on(target)(x), e / e.sum(-1, keepdims=True))
    one, other = draw(d, n, 9), draw(b, 9, d)
    gaps = np.abs(one[:, :, None] - other[None])
    found = distances.on(target)(one, other)
    close(found[0], gaps.sum(1))
    close(found[1], gaps[:, ::2].max(1))
    ids, w, p = np.random.default_rng(d).integers(0, 11, (b, n)), draw(5, 11, d), draw(6, n, d)
    close(embed.on(target)(ids, w, p), w[ids] + p)
    y, some = running.on(target)(x[0])
    state, rows = np.zeros(n, np.float32), []
    for i in range(d):
        state = state * np.float32(0.5) + x[0, :, i]
        rows.append(state)
    close(y, np.stack(rows, 1))
    np.testing.assert_array_equal(some, (x[0] > 1).any(1) + 2 * (x[0] > -1).all(1))
    left = draw(1, n * d)
    into = left.copy()
    scaled.on(target)(left, into, 3.0)
    close(into, 4 * left)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_products_accumulate_wide(dtype):
    torch.manual_seed(0)
    a, b = torch.randn(130, 200).to(dtype), torch.randn(200, 70).to(dtype)
    for rows in (130, 2):
        found = matmul(a[:rows].contiguous(), b)
        assert found.dtype == dtype
        expected = a[:rows].double() @ b.double()
        assert (found.double() - expected).norm() / expected.norm() < 5e-3


def test_the_compiler_says_which_form_it_took():
    a, b, x = draw(0, 8, 8), draw(1, 8, 8), draw(2, 2, 8, 8)

    def forms(kernel, *arguments):
        return [(d.form.split(":")[0], d.reason) for d in decisions(kernel.lowered(*arguments), CPU)]

    assert forms(matmul, a, b)[0][0] == "a matrix product"
    assert "computed" in forms(below_the_diagonal, a, b)[0][1]
    assert [name for name, _ in forms(distances, a, b)] == ["columns", "columns"]
    assert forms(softmax, x)[0][0] == "rows"
    assert forms(scaled, a[0], b[0], 1.0)[0][0] == "flat"


@pytest.mark.parametrize(
    "kernel", [matmul, batched, gated, convolution, softmax, distances, embed], ids=lambda x: x.__name__
)
def test_gpu_tiles_mean_the_same(kernel):
    """The interpreter runs what a GPU's tiling makes."""
    from mortice.tile.arguments import view
    from mortice.tile.host import bind
    from mortice.tile.interpreter import interpret
    from mortice.tile.ir.parser import parse
    from mortice.tile.ir.printer import text
    from mortice.tile.passes import run
    from mortice.tile.passes.tiling import GPU, tiling

    arguments = {
        "matmul": (draw(0, 40, 70), draw(1, 70, 33)),
        "batched": (draw(0, 1, 2, 5, 70), draw(1, 2, 33, 70), draw(2, 33)),
        "gated": (draw(0, 40, 70), draw(1, 70, 33), draw(2, 70, 33)),
        "convolution": (draw(0, 1, 5, 6, 4), draw(1, 3, 3, 4, 9)),
        "softmax": (draw(0, 2, 7, 600),),
        "distances": (draw(0, 5, 9), draw(1, 9, 33)),
        "embed": (np.random.default_rng(0).integers(0, 11, (2, 7)), draw(1, 11, 33), draw(2, 7, 33)),
    }[kernel.__name__]
    expected = kernel.on("interpreter")(*arguments)
    expected = expected if isinstance(expected, tuple) else (expected,)
    function = run(kernel.lowered(*arguments), (tiling(GPU),))
    assert text(parse(text(function))) == text(function)
    found = tuple(np.full_like(x, np.nan) for x in expected)
    names = [p.buffer.name for p in function.tensors]
    views = {name: view(x) for name, x in zip(names, (*arguments, *found), strict=True)}
    interpret(function, bind(function, views, {}))
    for a, b in zip(found, expected, strict=True):
        close(a, b)
