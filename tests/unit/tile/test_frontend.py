"""Python to tile IR: the text it gives, what it infers, and the words in which it refuses."""

import math

import numpy as np
import pytest

from mortice import tile
from mortice.ops.kernels.attention import attention
from mortice.ops.kernels.gemm import gemm_nt
from mortice.ops.kernels.norm import rms_norm
from mortice.tile.ir.parser import parse
from mortice.tile.ir.printer import text


def floats(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    "function",
    [
        gemm_nt.lowered(floats(9, 8), floats(7, 8)),
        rms_norm.lowered(floats(9, 8), floats(8), 1e-6),
        attention.lowered(*[floats(2, 9, 4, 16)] * 3, 0.5, causal=True),
        gemm_nt.lowered(floats(9, 16)[:, ::2], floats(16, 16)[::2, :8]),
    ],
    ids=["gemm", "norm", "attention", "strided"],
)
def test_text_reads_back_as_the_same_function_with_its_places(function):
    printed = text(function, spans=True)
    again = parse(printed)
    assert again == function
    assert text(again, spans=True) == printed
    assert again.body[-1].span == function.body[-1].span


def test_a_dimension_that_sizes_a_tile_becomes_a_constant_and_others_stay():
    printed = rms_norm.ir(floats(9, 24), floats(24), 1e-6)
    assert "X: f32[N, 24]" in printed
    assert "fragment(f32, 4, 24)" in printed


def test_a_kernel_is_made_without_data_and_gpu_targets_look_at_alignment():
    from mortice.tile import Spec, bf16

    specs = Spec((64, 24), bf16), Spec((32, 24), bf16)
    assert "A: bf16[M, K]" in gemm_nt.ir(*specs)
    function = gemm_nt.on("sm_90a").lowered(*specs)
    assert "A: aligned(bf16[M, K], 16)" in text(function)
    assert parse(text(function)) == function
    odd = gemm_nt.on("sm_90a").lowered(Spec((64, 23), bf16), Spec((32, 23), bf16))
    assert odd.tensors[0].buffer.align == 0


def test_a_scalar_that_a_loop_changes_is_a_variable_and_a_constant_if_leaves_no_trace():
    @tile.kernel
    def kernel(X: tile.Tensor, *, twice: bool = False):
        (N,) = X.shape
        for i in tile.grid(N):
            total = 0.0
            for j in range(i):
                total += X[j]
            if twice:
                total = total * 2
            X[i] = total

    printed = kernel.ir(floats(5))
    assert "total: var(f32) = 0.0" in printed
    assert "total = (total + X[j])" in printed
    assert "* 2" not in printed
    assert "* 2" in kernel.ir(floats(5), twice=True)


def test_inlined_functions_have_names_of_their_own_and_run_time_branches_are_selects():
    @tile.inline
    def clamp(x, low, high):
        total = max(x, low)
        return min(total, high)

    @tile.kernel
    def kernel(X: tile.Tensor, high: float):
        (N,) = X.shape
        for b in tile.grid(tile.ceildiv(N, 4)):
            for i in tile.parallel(4):
                X[b * 4 + i] = clamp(X[b * 4 + i], 0.0, high) if X[b * 4 + i] != 3.0 else math.pi

    x = np.array([-1, 2, 3, 8, 9], np.float32)
    kernel.on("interpreter")(x, 5.0)
    np.testing.assert_allclose(x, [0, 2, math.pi, 5, 5], rtol=1e-6)


def test_an_inlined_function_may_change_what_it_was_given():
    @tile.inline
    def doubled(x, times):
        for _ in range(times):
            x = x * 2
        return x

    @tile.kernel
    def kernel(X: tile.Tensor, times: int):
        (N,) = X.shape
        for i in tile.grid(N):
            X[i] = doubled(X[i], times)

    x = np.array([1, 2, 3], np.float32)
    kernel.on("interpreter")(x, 3)
    assert x.tolist() == [8, 16, 24]


def inner_extents(A: tile.Tensor):
    for _b in tile.grid(1):
        a, b, c = (
            tile.shared((16, 32), tile.f32),
            tile.shared((64, 16), tile.f32),
            tile.fragment((16, 16), tile.f32),
        )
        tile.gemm(a, b, c)


def types_of_gemm(A: tile.Tensor):
    for _b in tile.grid(1):
        a, b, c = (
            tile.shared((16, 16), tile.f32),
            tile.shared((16, 16), tile.bf16),
            tile.fragment((16, 16), tile.f32),
        )
        tile.gemm(a, b, c)


def tile_outside_grid(A: tile.Tensor):
    tile.shared((4,), tile.f32)


def copy_widths(A: tile.Tensor):
    for _b in tile.grid(1):
        a, b = tile.shared((16, 16), tile.f32), tile.shared((16, 8), tile.f32)
        tile.copy(a, b)


def outside_a_tile(A: tile.Tensor):
    for _b in tile.grid(1):
        a = tile.shared((16,), tile.f32)
        a[16] = 1.0


def run_time_tile(A: tile.Tensor, n: int):
    for _b in tile.grid(1):
        tile.shared((n,), tile.f32)


def wrong_argument(A: tile.Tensor):
    for _b in tile.grid(1):
        a = tile.shared((16,), tile.f32)
        tile.fill(a, 0, axis=1)


def plain_function(A: tile.Tensor):
    for i in tile.grid(4):
        A[i, 0] = math.sin(A[i, 0])


def unknown_name(A: tile.Tensor):
    for i in tile.grid(4):
        A[i, 0] = nothing  # noqa: F821


def misspelt(A: tile.Tensor):
    for i in tile.grid(4):
        A[i, 0] = tile.thread.shufle_xor(A[i, 0], 1)


def float_into_int(A: tile.Tensor):
    for i in tile.grid(4):
        a = tile.shared((4,), tile.i32)
        a[i] = 1.5


def try_statement(A: tile.Tensor):
    try:
        pass
    finally:
        pass


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (inner_extents, ["gemm", "[16, 32]", "[64, 16]", "32 and 64 disagree", ".T"]),
        (types_of_gemm, ["gemm", "a is f32, b is bf16", "cast"]),
        (tile_outside_grid, ["shared", "no grid", "tile.grid"]),
        (copy_widths, ["copy", "16 wide", "8"]),
        (outside_a_tile, ["16 lies outside a [16] f32"]),
        (run_time_tile, ["shared", "run-time values"]),
        (wrong_argument, ["fill", "unexpected keyword argument 'axis'", "tile.fill(target, value)"]),
        (plain_function, ["sin", "run-time values", "tile.inline"]),
        (misspelt, ["shufle_xor", "the thread level has no", "is it shuffle_xor?"]),
        (unknown_name, ["nothing", "no value here"]),
        (float_into_int, ["f32 goes into a [4] i32", "i32(...)"]),
        (try_statement, ["try", "not understood"]),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_mistake_is_told_with_file_line_operator_disagreement_and_remedy(function, words):
    with pytest.raises(tile.TileError) as caught:
        tile.kernel(function).ir(floats(4, 4), *([3] if function is run_time_tile else []))
    message = str(caught.value)
    first = function.__code__.co_firstlineno
    line = int(message.removeprefix(__file__).split(":")[1])
    assert message.startswith(f"{__file__}:")
    assert first < line <= first + 8
    assert message.count("\n") == 0
    for word in words:
        assert word in message, message


def test_calls_are_checked_before_anything_runs():
    with pytest.raises(tile.ArgumentError, match=r"B.shape\[1\] is 7, K = A.shape\[1\] says 8"):
        gemm_nt(floats(4, 8), floats(4, 7))
    with pytest.raises(tile.ArgumentError, match="names 2"):
        gemm_nt(floats(4, 8, 1), floats(4, 8))
    with pytest.raises(tile.ArgumentError, match="argument A: it is of type list"):
        gemm_nt([1.0], floats(4, 8))
    with pytest.raises(tile.ArgumentError, match="missing a required argument: 'B'"):
        gemm_nt(floats(4, 8))
    with pytest.raises(tile.ArgumentError, match="complex64"):
        gemm_nt(floats(4, 8).astype(np.complex64), floats(4, 8))
    with pytest.raises(tile.ArgumentError, match=r"`H % G == 0` does not hold with H = 3, G = 2"):
        attention(floats(1, 4, 3, 16), floats(1, 4, 2, 16), floats(1, 4, 2, 16), 1.0)
    with pytest.raises(tile.ArgumentError, match=r"out is \[4, 3\], the result C is \[4, 4\]"):
        gemm_nt(floats(4, 8), floats(4, 8), out=floats(4, 3))
