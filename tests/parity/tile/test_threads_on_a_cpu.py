"""Thread-level code without threads: cut at synchronisations, on every CPU target."""

import numpy as np
import pytest

from mortice import tile

TARGETS = ("interpreter", "c")


@tile.kernel
def block_sum(X: tile.Tensor, *, threads: int = 64):
    N, D = X.shape
    Y = tile.empty((N,), tile.f32)
    for n in tile.grid(N, threads=threads):
        partial = tile.shared((threads // 32,), tile.f32)
        t = tile.thread.thread()
        total = 0.0
        for d in range(t, D, threads):
            total += X[n, d]
        for step in (16, 8, 4, 2, 1):
            total += tile.thread.shuffle_xor(total, step)
        if tile.thread.lane() == 0:
            partial[tile.thread.warp()] = total
        tile.thread.sync(0, threads)
        if t == 0:
            every = 0.0
            for w in range(threads // 32):
                every += partial[w]
            Y[n] = every
    return Y


@tile.kernel
def transposed_in_shared(X: tile.Tensor):
    M, N = X.shape
    Y = tile.empty((N, M), X.dtype)
    for bm, bn in tile.grid(tile.ceildiv(M, 32), tile.ceildiv(N, 32), threads=32):
        square = tile.shared((32, 33), X.dtype)
        lane = tile.thread.lane()
        for i in range(32):
            square[i, lane] = X[bm * 32 + i, bn * 32 + lane]
        tile.thread.sync_warp()
        for i in range(32):
            Y[bn * 32 + i, bm * 32 + lane] = square[lane, i]
    return Y


@tile.kernel
def running_maximum(X: tile.Tensor):
    """A scan in a warp by shuffles, with an array of each thread, and a loop with cuts inside."""
    N, D = X.shape
    Y = tile.empty((N, D), tile.f32)
    for n in tile.grid(N, threads=32):
        lane = tile.thread.lane()
        kept = tile.local((2,), tile.f32)
        carry = -tile.inf
        for block in range(tile.ceildiv(D, 32)):
            kept[0] = X[n, block * 32 + lane] if block * 32 + lane < D else -tile.inf
            step = 1
            while step < 32:
                other = tile.thread.shuffle_up(kept[0], step)
                kept[1] = max(kept[0], other)
                kept[0] = kept[1]
                step = step * 2
            Y[n, block * 32 + lane] = max(kept[0], carry)
            carry = max(carry, tile.thread.shuffle(kept[0], 31))
    return Y


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [32, 96])
@pytest.mark.parametrize("d", [1, 33, 200])
def test_a_reduction_by_shuffles_and_shared_memory(target, threads, d):
    x = np.random.default_rng(d).standard_normal((3, d), np.float32)
    np.testing.assert_allclose(block_sum.on(target)(x, threads=threads), x.sum(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("target", TARGETS)
def test_a_transposition_through_a_tile(target):
    x = np.random.default_rng(0).standard_normal((40, 70), np.float32)
    np.testing.assert_array_equal(transposed_in_shared.on(target)(x), x.T)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("d", [5, 32, 70])
def test_a_scan_with_cuts_inside_loops(target, d):
    x = np.random.default_rng(d).standard_normal((2, d), np.float32)
    np.testing.assert_array_equal(running_maximum.on(target)(x), np.maximum.accumulate(x, 1))


@tile.kernel
def mixed(X: tile.Tensor):
    """Tile operators beside code for threads in one block."""
    N, D = X.shape
    Y = tile.empty((N, D), tile.f32)
    for n in tile.grid(tile.ceildiv(N, 4), threads=32):
        x = tile.shared((4, 32), tile.f32)
        total = tile.fragment((4,), tile.f32)
        tile.copy(X[n * 4 :, 0:32], x)
        lane = tile.thread.lane()
        for i in range(4):
            x[i, lane] = x[i, lane] * 2.0
        tile.thread.sync(0, 32)
        tile.reduce_sum(x, total)
        for i, j in tile.parallel(4, 32):
            x[i, j] = x[i, j] / total[i]
        tile.copy(x, Y[n * 4 :, 0:32])
    return Y


@pytest.mark.parametrize("target", TARGETS)
def test_levels_mix_in_one_block(target):
    x = np.abs(np.random.default_rng(0).standard_normal((7, 32), np.float32)) + 1
    np.testing.assert_allclose(mixed.on(target)(x), x / x.sum(1, keepdims=True), rtol=1e-5)


@tile.kernel
def forgotten_sync(X: tile.Tensor):
    for _ in tile.grid(1, threads=32):
        box = tile.shared((32,), tile.f32)
        lane = tile.thread.lane()
        box[lane] = X[lane]
        X[lane] = box[31 - lane]


@tile.kernel
def sync_in_a_branch(X: tile.Tensor):
    for _ in tile.grid(1, threads=64):
        t = tile.thread.thread()
        if t < 48:
            X[t] = 0.0
            tile.thread.sync(0, 64)


@tile.kernel
def barriers(X: tile.Tensor):
    for _ in tile.grid(1, threads=64):
        full = tile.barrier(2, count=1)
        tile.thread.barrier_arrive(full[0])


def test_a_forgotten_synchronisation_is_a_race_and_what_has_no_form_is_refused():
    x = np.arange(32, dtype=np.float32)
    with pytest.raises(tile.CheckError, match="one iteration reads what another writes") as caught:
        forgotten_sync.on("interpreter")(x.copy())
    assert caught.value.span.file == __file__
    for target in TARGETS:
        with pytest.raises(tile.UnsupportedError, match="threads go different ways"):
            sync_in_a_branch.on(target)(x.copy())
        with pytest.raises(tile.UnsupportedError, match=r"barrier_arrive: a CPU has no barriers.*simulator"):
            barriers.on(target)(x.copy())
