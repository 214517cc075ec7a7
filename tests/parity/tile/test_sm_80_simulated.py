"""The program for cards before Hopper (mma, ldmatrix, cp.async), run by the simulator, against torch and the interpreter;
and scans, which both kinds of card make alike."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from mortice import tile
from mortice.ops.kernels.attention import attention
from mortice.ops.kernels.gemm import gemm_nn, gemm_nt, gemm_tn
from mortice.tile import arguments
from mortice.tile.cuda.compile import compile_for_sm_80
from mortice.tile.cuda.nvrtc import available, compile_text
from mortice.tile.host import bind
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import transform_block, walk
from mortice.tile.passes.gpu.cards import SM_80
from mortice.tile.passes.gpu.lower import Choices, lower
from mortice.tile.simulator import simulate

SQUARE = tile.Spec((256, 256), tile.bf16)
HEADS = tile.Spec((2, 256, 4, 128), tile.bf16)


def error(found, expected):
    assert not found.isnan().any()
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@pytest.mark.parametrize(
    ("m", "n", "k", "stages"), [(100, 72, 200, 3), (33, 24, 71, 2), (1, 8, 8, 4), (64, 64, 64, 1)]
)
def test_gemm(m, n, k, stages):
    torch.manual_seed(0)
    a, b = torch.randn(m, k).bfloat16(), torch.randn(n, k).bfloat16()
    out = torch.full((m, n), math.nan).bfloat16()
    gemm_nt.on("simulator_sm_80")(a, b, out=out, BM=64, BN=64, BK=64, stages=stages)
    assert error(out, a.double() @ b.double().T) <= 5e-3


def test_operands_that_lie_the_other_way_round():
    torch.manual_seed(0)
    a, b = torch.randn(80, 104).half(), torch.randn(80, 72).half()
    expected = a.double().T @ b.double()
    assert error(gemm_tn.on("simulator_sm_80")(a, b, BM=64, BN=64, BK=32), expected) <= 2e-3
    assert error(gemm_nn.on("simulator_sm_80")(a.T.contiguous(), b, BM=32, BN=48, BK=32), expected) <= 2e-3


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal):
    torch.manual_seed(0)
    q, k = torch.randn(1, 40, 2, 32).bfloat16(), torch.randn(1, 70, 1, 32).bfloat16()
    found = attention.on("simulator_sm_80")(q, k, k, 0.2, causal=causal, BM=32, BN=32)
    expected = attention.on("interpreter")(q, k, k, 0.2, causal=causal, BM=32, BN=32)
    assert error(found[0], expected[0]) <= 8e-3
    assert (found[1] - expected[1]).abs().max() <= 1e-3


@tile.kernel
def whole_product(A: tile.Tensor, B: tile.Tensor) -> tile.Tensor:
    M, K = A.shape
    N, K = B.shape
    C = tile.empty((M, N), tile.i32)
    for bm, bn in tile.grid(tile.ceildiv(M, 32), tile.ceildiv(N, 48)):
        a, b = tile.shared((32, 64), A.dtype), tile.shared((48, 64), B.dtype)
        c = tile.fragment((32, 48), tile.i32, fill=0)
        for k in tile.pipelined(tile.ceildiv(K, 64), stages=3):
            tile.copy(A[bm * 32 :, k * 64 :], a)
            tile.copy(B[bn * 48 :, k * 64 :], b)
            tile.gemm(a, b.T, c)
        tile.copy(c, C[bm * 32 :, bn * 48 :])
    return C


@pytest.mark.parametrize("target", ["simulator", "simulator_sm_80"])
def test_products_of_whole_numbers_are_exact(target):
    torch.manual_seed(0)
    a = torch.randint(-128, 128, (40, 160), dtype=torch.int8)
    b = torch.randint(-128, 128, (50, 160), dtype=torch.int8)
    assert torch.equal(whole_product.on(target)(a, b).long(), a.long() @ b.long().T)


def program():
    rng = np.random.default_rng(0)
    data = {
        "A": rng.standard_normal((20, 264)).astype(np.float16),
        "B": rng.standard_normal((24, 264)).astype(np.float16),
    }
    specs = (tile.Spec(x.shape, tile.f16) for x in data.values())
    function = gemm_nt.on("sm_80").lowered(*specs, BM=32, BN=32, BK=64, stages=3)
    data["C"] = np.full((20, 24), np.nan, np.float16)
    bound = bind(function, {name: arguments.view(x) for name, x in data.items()}, {})
    return lower(function, Choices(card=SM_80))[0], bound


# What may go: the commit of an iteration that has nothing left to copy is no one's; here none is so.
@pytest.mark.parametrize("name", ["cp_async_wait", "sync", "cp_async_commit"])
def test_each_removed_wait_is_noticed(name):
    function, bound = program()
    simulate(function, bound)
    places = sum(isinstance(x, s.Op) and x.name == name for x in walk(function.body))
    assert places
    unseen = []
    for number in range(places):
        seen = iter(range(places))

        def change(node, seen=seen, number=number):
            return () if isinstance(node, s.Op) and node.name == name and next(seen) == number else node

        mutant = replace(function, body=transform_block(function.body, change))
        try:
            for seed in range(2):
                simulate(mutant, bound, seed)
            unseen.append(number)
        except tile.CheckError:
            pass
    # The sync before the first copies guards a loop that runs again; here it runs once.
    assert unseen == ([0] if name == "sync" else [])


@pytest.mark.skipif(not available(), reason="there is no NVRTC: pip install nvidia-cuda-nvrtc")
@pytest.mark.parametrize("name", ["gemm", "attention"])
def test_compiles_without_spills(name):
    made = {
        "gemm": lambda: gemm_nt.on("sm_80").lowered(SQUARE, SQUARE),
        "attention": lambda: attention.on("sm_80").lowered(HEADS, HEADS, HEADS, 0.1, causal=True),
    }
    source = compile_for_sm_80(made[name]()).source
    assert all(word in source for word in ("mma_16_bf16_bf16(", "cp_async<16>(", "ldmatrix_4("))
    code, log = compile_text(source, "sm_80")
    assert code[:4] == b"\x7fELF"
    assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in log
    ptx, _ = compile_text(source, "compute_80")
    assert re.search(r"mma\.sync\.aligned\.m16n8k16", ptx.decode())


@tile.kernel
def prefix(X: tile.Tensor, *, R: int = 4, W: int = 64, op: str = "sum", reverse: bool = False) -> tile.Tensor:
    M, N = X.shape
    Y = tile.empty((M, N), X.dtype)
    for m in tile.grid(tile.ceildiv(M, R)):
        x, y = tile.fragment((R, W), tile.f32), tile.fragment((R, W), tile.f32)
        tile.copy(X[m * R :, :], x)
        if op == "sum":
            tile.cumsum(x, y, axis=1, reverse=reverse)
        else:
            tile.cummax(x, y, axis=1, reverse=reverse)
        tile.copy(y, Y[m * R :, :])
    return Y


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("op", ["sum", "max"])
@pytest.mark.parametrize(("rows", "width"), [(4, 64), (1, 300), (3, 40)])
def test_scans(rows, width, op, reverse):
    torch.manual_seed(0)
    x = torch.randn(5, width)
    turned = x.flip(1) if reverse else x
    expected = turned.cumsum(1) if op == "sum" else turned.cummax(1).values
    found = prefix.on("simulator")(x, R=rows, W=width, op=op, reverse=reverse)
    assert ((found.flip(1) if reverse else found) - expected).abs().max() <= 1e-4


@tile.kernel
def turning(X: tile.Tensor) -> tile.Tensor:
    (N,) = X.shape
    Y = tile.empty((N,), X.dtype)
    for n in tile.grid(N):
        x = tile.shared((8,), tile.f32)
        total = tile.fragment((1,), tile.f32, fill=0)
        tile.copy(X[n:], x)
        tile.reduce_sum(x, total[0])
        tile.copy(total, Y[n : n + 1])
    return Y


def test_what_has_no_form_is_refused_with_its_line():
    with pytest.raises(
        tile.UnsupportedError, match=r"test_sm_80_simulated\.py:\d+:\d+: reduce: sm_80: x is a shared tile"
    ):
        _ = turning.on("sm_80").compiled(torch.randn(8)).source
    function = gemm_nt.on("sm_90a").lowered(SQUARE, SQUARE)
    hopper, _ = lower(function)
    with pytest.raises(tile.UnsupportedError, match="sm_80 has no such instruction"):
        lower(hopper, Choices(card=SM_80))
