"""What the interpreter refuses, compiled code masks or refuses, at the same line; nothing writes outside."""

import numpy as np
import pytest

from mortice import tile


@tile.kernel
def box(X: tile.Tensor, at: int):
    for b in tile.grid(1):
        t = tile.fragment((8,), tile.f32, fill=0)
        tile.copy(X[0:4], t[at : at + 4])
        X[b] = t[0]


@tile.kernel
def fact(X: tile.Tensor, at: int):
    for b in tile.grid(2):
        assert at + b < 5
        X[b] = 1.0


@tile.kernel
def steps(X: tile.Tensor, at: int):
    for b in tile.grid(1):
        for i in range(5, 0, at):
            X[b] = tile.f32(i)


@tile.kernel
def whole(X: tile.Tensor, Y: tile.Tensor):
    (N,) = X.shape
    (N,) = Y.shape
    for b in tile.grid(N):
        Y[b] = X[b] + 1.0


@tile.kernel
def beside(X: tile.Tensor, at: int):
    for b in tile.grid(1):
        t = tile.fragment((4,), tile.f32, fill=2)
        tile.copy(t, X[at:])
        X[at + 100] = 3.0
        X[at - 100] = tile.f32(at // (at - at)) + tile.f32(at % (at - at))
        X[b] = X[b]


@tile.kernel
def named_like_macros(X: tile.Tensor, a: int, b: int):
    for left, right in tile.grid(max(a, b), 1):
        if left == right:
            X[min(a, b)] = tile.f32(max(a, b))


@pytest.mark.parametrize("target", ["interpreter", "c"])
@pytest.mark.parametrize(
    ("kernel", "at", "words"),
    [
        (box, -1, "t: .*outside"),
        (box, 5, "t: .*outside"),
        (box, 2**40, "t: .*outside"),
        (fact, 4, "assert: `at \\+ b < 5` does not hold"),
        (steps, 0, "range: its step is 0"),
    ],
)
def test_it_is_refused_with_its_line(kernel, at, words, target):
    x = np.arange(8, dtype=np.float32)
    with pytest.raises(tile.CheckError, match=words) as found:
        kernel.on(target)(x, at)
    assert found.value.span.file == __file__


@pytest.mark.parametrize("target", ["interpreter", "c"])
@pytest.mark.parametrize("at", [-3, 6, 50])
def test_tensors_are_written_inside_only(at, target):
    memory = np.full(300, 7, np.float32)
    x = memory[100:108]
    beside.on(target)(x, at)
    expected = np.full(300, 7, np.float32)
    for i in range(at, at + 4):
        if 0 <= i < 8:
            expected[100 + i] = 2
    assert np.array_equal(memory, expected)


@pytest.mark.parametrize("target", ["interpreter", "c"])
def test_arguments_may_be_one_view_and_may_not_overlap(target):
    memory = np.zeros(10, np.float32)
    whole.on(target)(memory[:8], memory[:8])
    assert memory.tolist() == [1] * 8 + [0] * 2
    with pytest.raises(tile.CheckError, match="overlaps another argument"):
        whole.on(target)(memory[:8], memory[2:])


@pytest.mark.parametrize("target", ["interpreter", "c"])
def test_a_kernels_names_meet_none_of_the_compilers(target):
    x = np.zeros(8, np.float32)
    named_like_macros.on(target)(x, 3, 5)
    assert x.tolist() == [0, 0, 0, 5, 0, 0, 0, 0]


def test_a_call_like_one_before_goes_the_short_way_and_others_do_not():
    x, y = np.zeros(8, np.float32), np.zeros(8, np.float32)
    for _ in range(3):
        whole(x, y)
    assert y.tolist() == [1] * 8
    with pytest.raises(tile.ArgumentError):
        whole(x, np.zeros(7, np.float32))
    with pytest.raises(tile.CheckError):
        whole(y[:6], y[1:7])
    y.flags.writeable = False
    with pytest.raises(tile.ArgumentError, match="read-only"):
        whole(x, y)


@tile.kernel
def ranks(X: tile.Tensor) -> None:
    (N,) = X.shape
    for b in tile.grid(N, threads=32, cluster=2):
        tile.thread.cluster_sync()
        if tile.thread.thread() == 0:
            X[b] = tile.thread.cluster_rank()


@tile.kernel
def clustered_tiles(X: tile.Tensor) -> None:
    (N,) = X.shape
    for b in tile.grid(N, cluster=2):
        for _ in tile.parallel(1):
            X[b] = 1


def test_clusters_are_made_for_thread_code_on_hopper_and_refused_elsewhere():
    numbers = tile.Spec((8,), tile.i32)
    assert "__cluster_dims__(2, 1, 1)" in ranks.on("sm_90a").compiled(numbers).source
    for kernel, target, why in (
        (clustered_tiles, "sm_90a", "blocks of tile operators share nothing"),
        (ranks, "sm_80", "no clusters"),
    ):
        with pytest.raises(tile.UnsupportedError, match=why):
            kernel.on(target).compiled(numbers).source  # noqa: B018
    with pytest.raises(tile.UnsupportedError, match="without clusters"):
        ranks.on("simulator")(np.zeros(8, np.int32))
