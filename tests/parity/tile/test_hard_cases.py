"""Cases that compilers of kernels get wrong: shapes, loops, tiles, numbers. One test a case, on every CPU target; the
simulator has the cases of asynchronous copies, fences and barriers (tests/unit/tile/test_simulator.py)."""

import math
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from mortice import tile
from mortice.ops.kernels.attention import attention
from mortice.ops.kernels.gemm import gemm_nt, gemm_split_k, sum_splits
from mortice.ops.kernels.gemv import gemv_int4
from mortice.tile.passes.gpu.tiles import SharedTile, swizzle_for

TARGETS = ("interpreter", "c")
both = pytest.mark.parametrize("target", TARGETS)


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# Shapes


@pytest.mark.parametrize("shape", [(1, 4097, 7), (129, 1, 1000), (7, 63, 65), (127, 100, 8), (64, 64, 129)])
def test_sizes_around_a_tile(shape):
    m, n, k = shape
    a, b = draw(m, k), draw(n, k, seed=1)
    np.testing.assert_allclose(gemm_nt(a, b), a @ b.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tiles", [(48, 80, 16), (96, 112, 48), (160, 176, 32), (192, 224, 96)])
def test_tiles_that_are_no_powers_of_two(tiles):
    a, b = draw(200, 130), draw(230, 130, seed=1)
    constants = dict(zip(("BM", "BN", "BK"), tiles, strict=True))
    np.testing.assert_allclose(gemm_nt(a, b, **constants), a @ b.T, rtol=1e-3, atol=1e-3)


@both
def test_a_base_that_is_aligned_to_one_element_and_views_that_run_backwards(target):
    memory = draw(1 + 20 * 33)
    a = memory[1:].reshape(20, 33)
    b = draw(24, 33, seed=2)
    small = {"BM": 16, "BN": 16, "BK": 16}
    np.testing.assert_allclose(gemm_nt.on(target)(a, b, **small), a @ b.T, rtol=1e-4, atol=1e-4)
    turned = gemm_nt.on(target)(a[::-1, ::-1], b[:, ::-1], **small)
    np.testing.assert_allclose(turned, a[::-1] @ b.T, rtol=1e-4, atol=1e-4)


@tile.kernel
def mark(X: tile.Tensor):
    N, D = X.shape
    for bn, bd in tile.grid(tile.ceildiv(N, 4096), tile.ceildiv(D, 4096)):
        if bn == tile.ceildiv(N, 4096) - 1:
            for i, j in tile.parallel(4096, 4096):
                if bn * 4096 + i == N - 1:
                    X[bn * 4096 + i, bd * 4096 + j] = 1


def test_more_than_two_to_the_31_elements_are_indexed_in_64_bits():
    rows = 2**31 // 4096 + 3
    x = np.zeros((rows, 4096), np.int8)  # pages that nobody touches cost nothing
    mark(x)
    assert (x[-1] == 1).all()
    assert not x[-2].any()


@tile.kernel
def tall(X: tile.Tensor):
    (N,) = X.shape
    for _, y in tile.grid(1, N):
        X[y] = y


def test_a_grid_taller_than_65535():
    x = np.zeros(70_001, np.int32)
    tall(x)
    np.testing.assert_array_equal(x, np.arange(70_001))


@pytest.mark.parametrize("threads", [96, 160, 384])
@both
def test_blocks_of_odd_numbers_of_warps(threads, target):
    @tile.kernel
    def sums(X: tile.Tensor):
        N, _ = X.shape
        Y = tile.empty((N,), tile.f32)
        for n in tile.grid(N, threads=threads):
            x, total = tile.fragment((1, 100), tile.f32), tile.fragment((1,), tile.f32)
            tile.copy(X[n : n + 1, 0:100], x)
            tile.reduce_sum(x, total)
            tile.copy(total, Y[n:])
        return Y

    x = draw(5, 100)
    np.testing.assert_allclose(sums.on(target)(x), x.sum(1), rtol=1e-4, atol=1e-4)


# Dynamic


@both
def test_one_kernel_serves_twenty_shapes_and_none_at_all(target):
    @tile.kernel
    def joined(A: tile.Tensor, B: tile.Tensor, C: tile.Tensor):
        (M,) = A.shape
        (N,) = B.shape
        for b in tile.grid(tile.ceildiv(M + N, 8)):
            for i in tile.parallel(8):
                at = b * 8 + i
                C[at] = A[at] if at < M else B[at - M]

    kernel = joined.on(target)
    for i in range(20):
        a, b = draw(i * 3 % 11), draw(i * 7 % 13, seed=1)
        c = np.full(len(a) + len(b) + 1, 9, np.float32)
        kernel(a, b, c)
        np.testing.assert_array_equal(c[:-1], np.concatenate([a, b]))
        assert c[-1] in (0, 9)  # beyond B it reads 0
    assert len(kernel._specialised) == 1


def test_a_broken_divisibility_is_one_line_before_launch():
    q, k = draw(1, 4, 3, 16), draw(1, 4, 2, 16)
    with pytest.raises(tile.ArgumentError, match=r"`H % G == 0` does not hold with H = 3, G = 2"):
        attention(q, k, k, 1.0)


# Pipelines


@pytest.mark.parametrize("stages", [0, 1, 2, 3, 4, 7])
@both
def test_stages_and_iterations(stages, target):
    for k in (0, 1, 16 * max(stages - 1, 0), 16 * stages, 16 * (stages + 1), 100):
        a, b = draw(9, k), draw(5, k, seed=1)
        found = gemm_nt.on(target)(a, b, BM=16, BN=16, BK=16, stages=stages)
        np.testing.assert_allclose(found, a @ b.T, rtol=1e-4, atol=1e-4)


@tile.kernel
def reused(X: tile.Tensor):
    """The body reads a shared tile and then overwrites it; it was cleared before the loop; its sum is read in the loop."""
    N, D = X.shape
    Y, Z = tile.empty((N,), tile.f32), tile.empty((N,), tile.f32)
    for n in tile.grid(N):
        x, before = tile.shared((8,), tile.f32, fill=0), tile.fragment((1,), tile.f32, fill=0)
        most = tile.fragment((1,), tile.f32, fill=0)
        for k in tile.pipelined(tile.ceildiv(D, 8), stages=3):
            tile.reduce_sum(x, before[0], clear=False)
            tile.copy(X[n, k * 8 :], x)
            for i in tile.parallel(1):
                most[i] = max(most[i], before[i])
        tile.copy(before, Y[n : n + 1])
        tile.copy(most, Z[n : n + 1])
    return Y, Z


@both
def test_a_tile_that_the_loop_reads_before_it_overwrites(target):
    x = draw(4, 30)
    y, z = reused.on(target)(x)
    np.testing.assert_allclose(y, x[:, :24].sum(1), rtol=1e-4, atol=1e-5)
    starts = np.stack([x[:, : 8 * i].sum(1) for i in range(4)])
    np.testing.assert_allclose(z, np.maximum(starts.max(0), 0), rtol=1e-4, atol=1e-5)


@tile.kernel
def sparse(X: tile.Tensor, W: tile.Tensor, kept: tile.Tensor):
    M, K = X.shape
    N, K = W.shape
    (B,) = kept.shape
    assert tile.ceildiv(K, 16) == B, "a mark for each block of K"
    Y = tile.empty((M, N), tile.f32)
    for m, n in tile.grid(tile.ceildiv(M, 16), tile.ceildiv(N, 16)):
        x, w = tile.shared((16, 16), tile.f32), tile.shared((16, 16), tile.f32)
        y = tile.fragment((16, 16), tile.f32, fill=0)
        for k in tile.pipelined(B, stages=2):
            if kept[k] == 0:
                continue
            tile.copy(X[m * 16 :, k * 16 :], x)
            tile.copy(W[n * 16 :, k * 16 :], w)
            tile.gemm(x, w.T, y)
        tile.copy(y, Y[m * 16 :, n * 16 :])
    return Y


@both
@pytest.mark.parametrize("kept", [(0, 1, 1, 0), (1, 0, 0, 1), (0, 0, 0, 0)])
def test_blocks_that_data_say_to_skip_even_the_first_and_the_last(kept, target):
    x, w = draw(20, 64), draw(18, 64, seed=1)
    mask = np.repeat(kept, 16)
    found = sparse.on(target)(x, w, np.array(kept, np.int32))
    np.testing.assert_allclose(found, (x * mask) @ w.T, rtol=1e-4, atol=1e-4)


@tile.kernel
def two_loops(X: tile.Tensor):
    """Two pipelined loops share a tile, inside a loop over tiles; copies of one lie an iteration apart; an index read in the
    loop places a copy."""
    N, _ = X.shape
    Y = tile.empty((N, 8), tile.f32)
    for n in tile.grid(N):
        x, total = tile.shared((8,), tile.f32), tile.fragment((8,), tile.f32, fill=0)
        for _ in range(2):
            for k in tile.pipelined(3, stages=2):
                tile.copy(X[n, k * 8 :], x)
                for i in tile.parallel(8):
                    total[i] = total[i] + x[i]
            for k in tile.pipelined(2, stages=3):
                tile.copy(X[n, tile.i32(abs(X[n, k]) * 4) * 8 :], x)
                for i in tile.parallel(8):
                    total[i] = total[i] - x[i]
        tile.copy(total, Y[n, :])
    return Y


@both
def test_two_pipelined_loops_on_one_tile_inside_another_loop(target):
    x = np.abs(draw(3, 24)).clip(0, 0.7)
    wanted = 2 * x.reshape(3, 3, 8).sum(1)
    for n in range(3):
        for k in range(2):
            wanted[n] -= 2 * x[n].reshape(3, 8)[int(np.float32(x[n, k]) * 4)]
    np.testing.assert_allclose(two_loops.on(target)(x), wanted, rtol=1e-4, atol=1e-5)


# Layouts


@pytest.mark.parametrize(("width", "columns"), [(128, 64), (64, 32), (32, 16), (128, 128)])
def test_a_swizzled_tile_has_a_place_for_each_element(width, columns):
    """The map that copies, products and threads share: injective, whole, and eight rows of a chunk in eight places."""
    from mortice.tile.ir import expr as e
    from mortice.tile.ir.evaluate import evaluate
    from mortice.tile.ir.walk import walk

    shared = SharedTile("x", 16, columns, tile.bf16, width)
    row, column = e.Var(tile.index, "row"), e.Var(tile.index, "column")
    address = shared.address(row, column)
    assert {x.name for x in walk(address) if isinstance(x, e.Var)} == {"row", "column"}
    places = np.array(
        [[evaluate(address, {"row": r, "column": c}) for c in range(columns)] for r in range(16)]
    )
    assert sorted(places.reshape(-1)) == list(range(0, 16 * columns * 2, 2))
    chunks = places[:8, 0] % 128 // 16
    rows_in_a_line = 128 // width
    assert len({(int(p) // 16) % 8 for p in places[:8, 0]}) == 8 if rows_in_a_line == 1 else len(chunks) == 8
    assert swizzle_for(columns, 16, tile.bf16) == min(128, columns * 2)


@tile.kernel
def box_of_four(X: tile.Tensor):
    A, B, C, D = X.shape
    Y, Z = tile.empty((B, C), tile.f32), tile.empty((A, D), tile.f32)
    for _ in tile.grid(1):
        x, y, z = (
            tile.fragment((2, 3, 4, 5), tile.f32),
            tile.fragment((3, 4), tile.f32),
            tile.fragment((2, 5), tile.f32),
        )
        part, other = tile.fragment((2, 3, 4), tile.f32), tile.fragment((2, 4, 5), tile.f32)
        tile.copy(X[:, :, :, :], x)
        tile.reduce_sum(x, part, axis=3)
        tile.reduce_max(part, y, axis=0)
        tile.reduce_max(x, other, axis=1)
        tile.reduce_sum(other, z, axis=1)
        tile.copy(y, Y[:, :])
        tile.copy(z, Z[:, :])
    return Y, Z


@both
def test_reductions_along_every_axis_of_a_tile_of_four_dimensions(target):
    x = draw(2, 3, 4, 5)
    y, z = box_of_four.on(target)(x)
    np.testing.assert_allclose(y, x.sum(3).max(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(z, x.max(1).sum(1), rtol=1e-5, atol=1e-5)


@tile.kernel
def groups_of_columns(X: tile.Tensor, S: tile.Tensor):
    N, D = X.shape
    N, _ = S.shape
    Y = tile.empty((N, D), tile.f32)
    for n, d in tile.parallel(N, D):
        Y[n, d] = X[n, d] * S[n, d // 32]
    return Y


@both
def test_the_index_j_div_32_of_448_columns(target):
    x, s = draw(16, 448), draw(16, 14, seed=1)
    np.testing.assert_allclose(groups_of_columns.on(target)(x, s), x * s.repeat(32, 1), rtol=1e-6)


# Numbers


@both
@pytest.mark.parametrize("causal", [False, True])
def test_attention_of_one_key_of_none_and_of_large_scores(causal, target):
    small = {"BM": 16, "BN": 16, "causal": causal}
    q, k = draw(1, 20, 1, 16) * 300, draw(1, 20, 1, 16, seed=1) * 300
    y, sums = attention.on(target)(q, k, k, 1.0, **small)
    assert np.isfinite(y).all()
    scores = q[0, :, 0].astype(np.float64) @ k[0, :, 0].T.astype(np.float64)
    if causal:
        scores = np.where(np.tri(20, dtype=bool), scores, -np.inf)
    np.testing.assert_allclose(sums[0, 0], np.logaddexp.reduce(scores, 1), rtol=1e-4)
    one, _ = attention.on(target)(q[:, :3], k[:, :1], k[:, :1], 1.0, **small)
    alive = 1 if causal else 3
    np.testing.assert_allclose(one[0, 3 - alive :], np.repeat(k[0, :1], alive, 0), rtol=1e-5)
    none, gone = attention.on(target)(q[:, :3], k[:, :0], k[:, :0], 1.0, **small)
    assert (none == 0).all()
    assert (gone == -math.inf).all()


@tile.kernel
def cast(X: tile.Tensor, *, to: tile.DType):
    (N,) = X.shape
    Y = tile.empty((N,), to)
    for b in tile.grid(tile.ceildiv(N, 16)):
        x = tile.fragment((16,), to)
        tile.copy(X[b * 16 :], x)
        tile.copy(x, Y[b * 16 :])
    return Y


@both
@pytest.mark.parametrize(
    ("to", "dtype"),
    [
        (tile.bf16, torch.bfloat16),
        (tile.f16, torch.float16),
        (tile.e4m3, torch.float8_e4m3fn),
        (tile.e5m2, torch.float8_e5m2),
    ],
    ids=str,
)
def test_casts_in_copies_round_to_even_and_fp8_saturates(to, dtype, target):
    ties = torch.arange(-40, 40) / 16 + 2.0**-9 * torch.arange(80)
    small = 2.0 ** torch.arange(-20, 0) * 1.5
    x = torch.cat([ties, small, -small]).float()
    assert torch.equal(cast.on(target)(x, to=to).float(), x.to(dtype).float())
    if dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        large = cast.on(target)(torch.tensor([1e6, -1e6, math.inf]), to=to).float()
        assert large.abs().tolist() == [torch.finfo(dtype).max] * 3


@both
def test_zero_points_at_both_ends(target):
    w = np.arange(256, dtype=np.uint8).reshape(4, 64)
    codes = np.stack([w & 15, w >> 4], -1).reshape(4, 128).astype(np.float32)
    x, s = draw(1, 128), np.ones((4, 4), np.float32)
    for zero in (0.0, 15.0):
        z = np.full((4, 4), zero, np.float32)
        found = gemv_int4.on(target)(x, w, s, z, BK=64)
        np.testing.assert_allclose(found, x @ (codes - zero).T, rtol=1e-4, atol=1e-3)


def test_split_sums_are_the_same_bits_each_time():
    a, b = draw(5, 3000), draw(7, 3000, seed=1)
    runs = [sum_splits(gemm_split_k(a, b, splits=4), a) for _ in range(5)]
    assert all((run == runs[0]).all() for run in runs)
    np.testing.assert_allclose(runs[0], a @ b.T, rtol=1e-3, atol=1e-3)


@both
def test_nan_and_infinities_pass_through_sums(target):
    @tile.kernel
    def total(X: tile.Tensor):
        N, D = X.shape
        Y = tile.empty((N,), tile.f32)
        for n in tile.parallel(N):
            Y[n] = tile.sum(X[n, d] for d in range(D))
        return Y

    x = np.ones((4, 20), np.float32)
    x[0, 3], x[1, 4], x[2, 5:7] = np.nan, np.inf, (np.inf, -np.inf)
    found = total.on(target)(x)
    assert np.isnan(found[0])
    assert found[1] == np.inf
    assert np.isnan(found[2])
    assert found[3] == 20


@tile.kernel
def halo(X: tile.Tensor):
    (N,) = X.shape
    Y = tile.empty((N,), tile.f32)
    for b in tile.grid(tile.ceildiv(N, 8)):
        x = tile.shared((12,), tile.f32)
        tile.copy(X[b * 8 - 2 :], x)
        for i in tile.parallel(8):
            Y[b * 8 + i] = x[i] + x[i + 2] + x[i + 4]
    return Y


@both
def test_a_box_that_begins_before_its_tensor(target):
    x = draw(19)
    wide = np.pad(x, 2)
    np.testing.assert_allclose(halo.on(target)(x), wide[:-4] + wide[2:-2] + wide[4:], rtol=1e-6)


# Tools


def test_a_constant_of_the_closure_makes_another_kernel():
    def scaled(by: float):
        @tile.kernel
        def kernel(X: tile.Tensor):
            (N,) = X.shape
            for i in tile.parallel(N):
                X[i] = X[i] * by

        return kernel

    x = np.ones(5, np.float32)
    scaled(2.0)(x)
    scaled(5.0)(x)
    assert (x == 10).all()


def test_a_mistake_while_reading_leaves_nothing_broken():
    @tile.kernel
    def kernel(X: tile.Tensor, *, wrong: bool = False):
        (N,) = X.shape
        for i in tile.parallel(N):
            X[i] = nothing if wrong else 1.0  # noqa: F821

    x = np.zeros(3, np.float32)
    for _ in range(2):
        with pytest.raises(tile.TileError, match="nothing"):
            kernel(x, wrong=True)
    kernel(x)
    assert (x == 1).all()


def test_many_compiles_at_once_and_calls_from_many_threads():
    x = draw(40)
    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(lambda n: cast.on("c").compiled(x[: n + 1], to=(tile.bf16, tile.f16)[n % 2]), range(100))
        )
    assert len({one.source for one in made}) == 2
    wrong: list[int] = []

    def calls(n: int) -> None:
        for _ in range(50):
            mine = np.full(n, n, np.float32)
            out = np.zeros(n, np.float32)
            cast(mine, to=tile.f32, out=out)
            if not (out == n).all():
                wrong.append(n)

    threads = [threading.Thread(target=calls, args=(n,)) for n in (3, 17, 40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_processes_that_compile_one_kernel_at_once(tmp_path: Path):
    file = tmp_path / "one.py"
    file.write_text(
        "import numpy as np\nfrom mortice import tile\n\n\n@tile.kernel\ndef k(X: tile.Tensor):\n    (N,) = X.shape\n"
        "    for i in tile.parallel(N):\n        X[i] = X[i] + 41\n\n\nx = np.ones(3, np.float32)\nk(x)\nprint(x.sum())\n"
    )
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    runs = [
        subprocess.Popen(
            [sys.executable, str(file)],
            stdout=subprocess.PIPE,
            text=True,
            env={"MORTICE_HOME": str(home), "PATH": "/usr/bin:/bin"},
        )
        for _ in range(2)
    ]
    assert [run.communicate()[0] for run in runs] == ["126.0\n"] * 2
    assert len(list((home / "tile").glob("*.so"))) == 1
