"""Hard cases of numbers, groups, atomics, stages and the cache of compiled kernels: see docs/tile/hard-cases.md."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from mortice import tile
from mortice.ops.kernels.gemm import gemm_nt
from mortice.ops.kernels.gemm_grouped import grouped_gemm
from mortice.ops.kernels.gemv import gemv_int4
from mortice.ops.kernels.quantize import dequantize, quantize
from mortice.tile.c import build
from mortice.tile.explain.report import report

both = pytest.mark.parametrize("target", ["interpreter", "c"])


@pytest.mark.parametrize(
    "ends", [(0, 0, 33, 33), (0, 33, 33, 33), (0, 1, 16, 33), (0, 15, 32, 33), (0, 0, 0, 0)]
)
@both
def test_groups_of_none_of_one_around_a_tile_and_of_all_rows(ends, target):
    x, w = torch.randn(ends[-1], 24), torch.randn(3, 20, 24)
    offsets = torch.tensor(ends, dtype=torch.int32)
    found = grouped_gemm.on(target)(x, w, offsets, BM=16, BN=32, BK=16)
    parts = [x[a:b] @ w[e].T for e, (a, b) in enumerate(pairwise(ends))]
    torch.testing.assert_close(found, torch.cat(parts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("to", [tile.e4m3, tile.e5m2, tile.i8])
@both
def test_a_group_of_zeros_has_scale_zero_and_comes_back_as_zeros(to, target):
    x = torch.zeros(2, 200)
    x[1, 130:] = torch.linspace(-3, 3, 70)
    codes, scale = quantize.on(target)(x, to=to)
    assert scale[0].tolist() == [0, 0]
    back = dequantize.on(target)(codes, scale, to=tile.f32)
    assert not back[0].any()
    torch.testing.assert_close(back, x, rtol=0.15, atol=0.03)


@pytest.mark.parametrize(("to", "smallest"), [(tile.e4m3, 2**-9), (tile.e5m2, 2**-16)])
@both
def test_the_smallest_numbers_of_fp8(to, smallest, target):
    """Below the normal range, ties to even: half of the smallest is 0, one and a half are two of it."""
    x = torch.tensor([[smallest, smallest / 2, smallest * 1.5, -smallest, smallest / 2 * 1.01]])
    found = dequantize.on(target)(x.to(torch.float8_e4m3fn if to == tile.e4m3 else torch.float8_e5m2),
                                  torch.ones(1, 1), to=tile.f32)  # fmt: skip
    assert found.tolist() == [[smallest, 0, 2 * smallest, -smallest, smallest]]


@pytest.mark.parametrize(("group", "BK"), [(32, 1024), (32, 48), (64, 64), (16, 64)])
@both
def test_four_bits_byte_by_byte(group, BK, target):
    x, w = torch.randn(2, 320), torch.randint(0, 256, (19, 160), dtype=torch.uint8)
    s, z = torch.randn(19, 320 // group), torch.randint(0, 16, (19, 320 // group)).float()
    codes = torch.stack((w & 15, w >> 4), -1).flatten(1).float()
    wide = (codes - z.repeat_interleave(group, 1)) * s.repeat_interleave(group, 1)
    found = gemv_int4.on(target)(x, w, s, z, group=group, BK=BK, rows=8, paired=True)
    torch.testing.assert_close(found, x @ wide.T, rtol=1e-4, atol=2e-3)


@tile.kernel
def sums(X: tile.Tensor, Y: tile.Tensor):
    """Each block adds the sums of its rows to Y: a number that several threads hold is added once."""
    N, _ = X.shape
    for b in tile.grid(tile.ceildiv(N, 16), threads=128):
        x, total = tile.fragment((16, 64), tile.f32), tile.fragment((16,), tile.f32)
        tile.copy(X[b * 16 :, :], x)
        tile.reduce_sum(x, total, axis=1)
        for i in tile.parallel(16):
            tile.atomic_add(Y[i], total[i])


@pytest.mark.parametrize("target", ["interpreter", "c", "simulator"])
def test_a_number_that_several_threads_hold_is_added_once(target):
    x = np.arange(48 * 64, dtype=np.float32).reshape(48, 64) % 7
    y = np.zeros(16, np.float32)
    sums.on(target)(x, y)
    np.testing.assert_array_equal(y, x.sum(1).reshape(3, 16).sum(0))


def test_the_cache_is_keyed_by_source_flags_compiler_and_headers(monkeypatch, tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text("one")
    seen = set()

    def look(source="int x;"):
        build._surroundings.cache_clear()
        seen.add(build.key(source, str(compiler)))

    try:
        look()
        look()
        assert len(seen) == 1
        look("int y;")
        monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-g"))
        look()
        compiler.write_text("another")
        look()
        (tmp_path / "prelude.h").write_text("/* changed */")
        (tmp_path / "gemm.h").write_text("")
        monkeypatch.setattr(build, "FOLDER", tmp_path)
        look()
    finally:
        build._surroundings.cache_clear()
    assert len(seen) == 5


@tile.kernel
def two_readers(A: tile.Tensor, B: tile.Tensor):
    """A product wants b packed, the sum wants its rows."""
    M, K = A.shape
    N, K = B.shape
    C, S = tile.empty((M, N), tile.f32), tile.empty((M, N), tile.f32)
    for bm in tile.grid(tile.ceildiv(M, 32)):
        a, b = tile.shared((32, K), A.dtype), tile.shared((N, K), B.dtype)
        c, s = tile.fragment((32, N), tile.f32), tile.fragment((N,), tile.f32)
        tile.copy(A[bm * 32 :, :], a)
        tile.copy(B, b)
        tile.gemm(a, b.T, c, clear=True)
        tile.reduce_sum(b, s, axis=1)
        tile.copy(c, C[bm * 32 :, :])
        tile.copy(s, S[bm * 32, :])
    return C, S


def test_two_users_of_one_tile_who_want_it_laid_out_differently():
    a, b = torch.randn(40, 64).bfloat16(), torch.randn(24, 64).bfloat16()
    for target in ("interpreter", "c"):
        c, s = two_readers.on(target)(a, b)
        torch.testing.assert_close(c, a.float() @ b.float().T, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(s[0], b.float().sum(1), rtol=1e-4, atol=1e-4)
    specs = tile.Spec((40, 64), tile.bf16), tile.Spec((24, 64), tile.bf16)
    slow = [note.decision for note in report(two_readers, specs, "c").notes if note.slow]
    assert "operand b is packed at each product" in slow
    with pytest.raises(tile.UnsupportedError, match=r"reduce: .*b is a shared tile; copy it to a fragment"):
        two_readers.on("simulator")(a, b)


def test_stages_that_do_not_fit_are_fewer_and_that_is_said():
    square = tile.Spec((4096, 4096), tile.bf16)
    found = report(gemm_nt, (square, square), "sm_90a", {"stages": 12})
    assert found.resources[0].stages == {"a": 4}
    assert [n.decision for n in found.notes if "12 would not fit" in n.reason] == ["4 stages of a, b"]


@tile.kernel
def row_steps(X: tile.Tensor):
    """Softmax of 48 rows (bands of 16), a row of which is empty."""
    N, D = X.shape
    Y = tile.empty((N, D), tile.f32)
    for b in tile.grid(tile.ceildiv(N, 48)):
        x, top, total = (
            tile.fragment((48, 40), tile.f32),
            tile.fragment((48,), tile.f32),
            tile.fragment((48,), tile.f32),
        )
        tile.copy(X[b * 48 :, :], x, pad=-tile.inf)
        tile.reduce_max(x, top, axis=1)
        for i in tile.parallel(48):
            top[i] = top[i] if top[i] > -tile.inf else 0.0
        for i, j in tile.parallel(48, 40):
            x[i, j] = tile.exp(x[i, j] - top[i])
        tile.reduce_sum(x, total, axis=1)
        for i, j in tile.parallel(48, 40):
            x[i, j] = x[i, j] / total[i] if total[i] > 0 else 0.0
        tile.copy(x, Y[b * 48 :, :])
    return Y


@both
def test_rows_in_bands_with_ragged_ends_and_an_empty_row(target):
    x = np.random.default_rng(0).standard_normal((50, 37)).astype(np.float32) * 30
    x[3] = -np.inf
    x[4, 5] = -np.inf
    found = row_steps.on(target)(x)
    expected = torch.from_numpy(x).double().softmax(-1).nan_to_num(0).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
