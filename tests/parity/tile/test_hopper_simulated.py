"""The lowered Hopper program, run by the simulator, against torch and the interpreter, on ragged shapes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mortice import tile
from mortice.ops.kernels.attention import attention
from mortice.ops.kernels.gemm import gemm_nt
from mortice.ops.kernels.mla import mla_decode
from mortice.ops.kernels.norm import rms_norm
from mortice.tile.ir import stmt as s
from mortice.tile.ir.walk import walk
from mortice.tile.passes.gpu.lower import lower

few = settings(max_examples=4, deadline=None, derandomize=True)
sizes = st.sampled_from([1, 8, 63, 64, 65, 100, 136])
LIMIT = {torch.bfloat16: 5e-3, torch.float16: 2e-3}


def poisoned(*shape, dtype=torch.bfloat16):
    return torch.full(shape, math.nan, dtype=dtype)


def error(found, expected):
    assert not found.isnan().any()
    norm = expected.double().norm()
    return ((found.double() - expected.double()).norm() / norm).item() if norm else found.abs().max().item()


@few
@given(
    sizes, sizes, st.sampled_from([0, 8, 64, 100, 127, 264]), st.sampled_from(list(LIMIT)), st.integers(0, 99)
)
def test_gemm(m, n, k, dtype, seed):
    torch.manual_seed(seed)
    a, b = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    out = poisoned(m, n, dtype=dtype)
    gemm_nt.on("simulator")(a, b, out=out, BM=64, BN=64, BK=64, stages=2)
    assert error(out, a.double() @ b.double().T) <= (LIMIT[dtype] if k else 0)


@pytest.mark.parametrize(
    ("tile_m", "tile_n", "depth", "stages"),
    [(128, 64, 32, 3), (192, 96, 64, 2), (64, 72, 16, 4), (256, 64, 64, 1)],
)
def test_gemm_tiles(tile_m, tile_n, depth, stages):
    torch.manual_seed(1)
    a, b = torch.randn(200, 96).bfloat16(), torch.randn(104, 96).bfloat16()
    out = poisoned(200, 104)
    gemm_nt.on("simulator")(a, b, out=out, BM=tile_m, BN=tile_n, BK=depth, stages=stages)
    assert error(out, a.double() @ b.double().T) <= 5e-3


def test_gemm_of_rows_that_tma_cannot_walk_says_so_and_is_right():
    torch.manual_seed(0)
    a, b = torch.randn(65, 103).bfloat16(), torch.randn(64, 103).bfloat16()
    out = gemm_nt.on("simulator")(a, b, BM=64, BN=64)
    assert error(out, a.double() @ b.double().T) <= 5e-3
    notes = gemm_nt.on("cuda").compiled(a, b, BM=64, BN=64).notes
    assert [note.span.line for note in notes if "multiple of 16 bytes" in note.reason]


@few
@given(
    st.sampled_from([1, 64, 70, 130]), st.sampled_from([1, 64, 100, 200]), st.booleans(), st.integers(0, 99)
)
def test_attention(queries, keys, causal, seed):
    torch.manual_seed(seed)
    q = torch.randn(1, queries, 2, 64).bfloat16()
    k, v = torch.randn(1, keys, 1, 64).bfloat16(), torch.randn(1, keys, 1, 64).bfloat16()
    out, lse = poisoned(1, queries, 2, 64), poisoned(1, 2, queries, dtype=torch.float32)
    attention.on("simulator")(q, k, v, 0.2, causal=causal, BN=64, out=(out, lse))
    expected, sums = torch.empty_like(out), torch.empty_like(lse)
    attention.on("interpreter")(q, k, v, 0.2, causal=causal, BN=64, out=(expected, sums))
    assert error(out, expected) <= 8e-3
    alive = sums > -math.inf
    assert torch.equal(lse > -math.inf, alive)
    assert not alive.any() or (lse[alive] - sums[alive]).abs().max() <= 1e-3


def test_mla_decode_shares_scores_between_warpgroups():
    torch.manual_seed(0)
    lengths = [70, 1, 0]
    q, kv = torch.randn(3, 5, 576).bfloat16(), torch.randn(6, 64, 576).bfloat16()
    table = torch.full((3, 2), 10**6, dtype=torch.int32)
    table[0, 0], table[0, 1], table[1, 0] = 3, 1, 5
    parts, sums = mla_decode.on("simulator")(
        q, kv, table, torch.tensor(lengths, dtype=torch.int32), 0.05, splits=2
    )
    weight = (sums - sums.logsumexp(1, keepdim=True)).exp().nan_to_num(0)
    found = (parts * weight[..., None]).sum(1)
    for row, length in enumerate(lengths):
        if length == 0:
            assert (found[row] == 0).all()
            continue
        keys = kv[table[row, : -(-length // 64)].long()].reshape(-1, 576)[:length].double()
        assert error(found[row], (q[row].double() @ keys.T * 0.05).softmax(-1) @ keys[:, :512]) <= 8e-3


def test_mla_decode_of_many_heads_goes_panel_by_panel_with_scores_in_the_idle_ones():
    torch.manual_seed(0)
    q, kv = torch.randn(1, 64, 576).bfloat16(), torch.randn(4, 64, 576).bfloat16()
    table, length = torch.tensor([[2, 0, 3, 1]], dtype=torch.int32), 201
    arguments = (q, kv, table, torch.tensor([length], dtype=torch.int32), 0.05)
    parts, _ = mla_decode.on("simulator")(*arguments, splits=1)
    keys = kv[table[0].long()].reshape(-1, 576)[:length].double()
    assert error(parts[0, 0], (q[0].double() @ keys.T * 0.05).softmax(-1) @ keys[:, :512]) <= 8e-3
    function = mla_decode.on("sm_90a").lowered(*arguments, splits=1)
    barriers = [
        x for x in walk(lower(function)[0].body) if isinstance(x, s.Alloc) and x.buffer.scope == "barrier"
    ]
    assert [x.buffer.extents[0] for x in barriers] == [1, 1, 9, 9]


@few
@given(st.sampled_from([1, 5, 33]), st.sampled_from([1, 7, 64, 100, 257]), st.integers(0, 99))
def test_rms_norm(rows, width, seed):
    torch.manual_seed(seed)
    x, w = torch.randn(rows, width).bfloat16(), torch.randn(width).bfloat16()
    out = poisoned(rows, width)
    rms_norm.on("simulator")(x, w, 1e-5, out=out)
    assert error(out, torch.nn.functional.rms_norm(x.double(), (width,), w.double(), 1e-5)) <= 5e-3


@tile.kernel
def f32_product(A: tile.Tensor, B: tile.Tensor) -> tile.Tensor:
    M, K = A.shape
    N, K = B.shape
    C = tile.empty((M, N), tile.f32)
    for bm, bn in tile.grid(tile.ceildiv(M, 64), tile.ceildiv(N, 64)):
        a, b = tile.shared((64, 32), A.dtype), tile.shared((64, 32), B.dtype)
        c = tile.fragment((64, 64), tile.f32, fill=0)
        for k in tile.pipelined(tile.ceildiv(K, 32), stages=2):
            tile.copy(A[bm * 64 :, k * 32 :], a)
            tile.copy(B[bn * 64 :, k * 32 :], b)
            tile.gemm(a, b.T, c)
        tile.copy(c, C[bm * 64 :, bn * 64 :])
    return C


def test_a_product_that_no_matrix_unit_makes_is_made_by_threads_and_says_so():
    torch.manual_seed(0)
    a, b = torch.randn(70, 50), torch.randn(66, 50)
    assert error(f32_product.on("simulator")(a, b), a.double() @ b.double().T) <= 1e-5
    notes = f32_product.on("cuda").compiled(a, b).notes
    assert [n.reason for n in notes if n.decision == "multiplied by threads, not by the matrix unit"] == [
        "no matrix unit multiplies f32 by f32 and adds in f32 exactly"
    ]


@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn])
def test_narrow_numbers_that_the_copy_engine_cannot_walk_are_loaded_by_threads(kind):
    torch.manual_seed(0)
    wide = [torch.randint(-9, 9, (n, 100)).float() for n in (70, 40)]
    a, b = (x.to(kind) for x in wide)
    out = narrow_product.on("simulator")(a, b)
    assert error(out.float(), wide[0].double() @ wide[1].double().T) <= 1e-6


@tile.kernel
def narrow_product(A: tile.Tensor, B: tile.Tensor) -> tile.Tensor:
    M, K = A.shape
    N, K = B.shape
    C = tile.empty((M, N), tile.f32 if A.dtype.kind == "f" else tile.i32)
    for bm, bn in tile.grid(tile.ceildiv(M, 64), tile.ceildiv(N, 64)):
        a, b = tile.shared((64, 128), A.dtype), tile.shared((64, 128), B.dtype)
        c = tile.fragment((64, 64), C.dtype, fill=0)
        for k in tile.pipelined(tile.ceildiv(K, 128), stages=2):
            tile.copy(A[bm * 64 :, k * 128 :], a)
            tile.copy(B[bn * 64 :, k * 128 :], b)
            tile.gemm(a, b.T, c)
        tile.copy(c, C[bm * 64 :, bn * 64 :])
    return C
