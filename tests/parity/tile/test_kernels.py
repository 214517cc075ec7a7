"""Every kernel on every CPU target against torch, on ragged shapes that hypothesis draws."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mortice.ops.kernels.attention import attention
from mortice.ops.kernels.gemm import gemm_nt
from mortice.ops.kernels.mla import mla_decode
from mortice.ops.kernels.norm import rms_norm

TARGETS = ("interpreter", "c")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 2e-3}
dtypes = st.sampled_from(list(TOLERANCE))
sizes = st.sampled_from([1, 7, 8, 31, 32, 33, 63, 64, 65, 100])
few = settings(max_examples=7, deadline=None, derandomize=True)


def poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, math.nan, dtype=dtype)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert not found.isnan().any()
    norm = expected.double().norm()
    return ((found.double() - expected.double()).norm() / norm).item() if norm else found.abs().max().item()


@pytest.mark.parametrize("target", TARGETS)
@few
@given(sizes, sizes, st.sampled_from([0, 1, 7, 32, 40, 65]), dtypes, st.integers(0, 100))
def test_gemm(target, m, n, k, dtype, seed):
    torch.manual_seed(seed)
    a, b = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
    out = poisoned(m, n, dtype=dtype)
    gemm_nt.on(target)(a, b, out=out, BM=32, BN=48, BK=32)
    expected = a.double() @ b.double().T
    assert (error(out, expected) if k else out.abs().max().item()) <= TOLERANCE[dtype]


@pytest.mark.parametrize("target", TARGETS)
def test_gemm_of_views_that_have_gaps(target):
    torch.manual_seed(0)
    a, b = torch.randn(40, 70)[::2, 3:50], torch.randn(94, 33).T[:, ::2]
    out = gemm_nt.on(target)(a, b, BM=32, BN=32, BK=16)
    assert error(out, a.double() @ b.double().T) <= 1e-5


@pytest.mark.parametrize("target", TARGETS)
@few
@given(sizes, sizes, dtypes, st.integers(0, 100))
def test_rms_norm(target, rows, width, dtype, seed):
    torch.manual_seed(seed)
    x, w = torch.randn(rows, width).to(dtype), torch.randn(width).to(dtype)
    out = poisoned(rows, width, dtype=dtype)
    rms_norm.on(target)(x, w, 1e-5, out=out)
    assert (
        error(out, torch.nn.functional.rms_norm(x.double(), (width,), w.double(), 1e-5)) <= TOLERANCE[dtype]
    )


@pytest.mark.parametrize("target", TARGETS)
@few
@given(sizes, sizes, st.sampled_from([(4, 2), (1, 1), (3, 3)]), st.booleans(), dtypes, st.integers(0, 100))
def test_attention(target, queries, keys, heads, causal, dtype, seed):
    torch.manual_seed(seed)
    h, g = heads
    q = torch.randn(2, queries, h, 32).to(dtype)
    k, v = torch.randn(2, keys, g, 32).to(dtype), torch.randn(2, keys, g, 32).to(dtype)
    out, lse = poisoned(2, queries, h, 32, dtype=dtype), poisoned(2, h, queries, dtype=torch.float32)
    attention.on(target)(q, k, v, 0.2, causal=causal, BM=32, BN=32, out=(out, lse))
    wide_k, wide_v = (x.double().repeat_interleave(h // g, 2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q.double(), wide_k) * 0.2
    if causal:
        late = torch.ones(queries, keys, dtype=torch.bool).triu(1 + keys - queries)
        scores = scores.masked_fill(late, -math.inf)
    expected = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1).nan_to_num(0), wide_v)
    assert error(out, expected) <= max(8e-3 if dtype != torch.float32 else 0, TOLERANCE[dtype])
    sums = scores.logsumexp(-1)
    alive = sums > -math.inf
    assert torch.equal(lse > -math.inf, alive)
    assert (lse[alive].double() - sums[alive]).abs().max() <= 1e-3 if alive.any() else True


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mla_decode_reads_only_the_pages_of_each_sequence(target, dtype):
    torch.manual_seed(0)
    lengths = [70, 1, 0, 33]
    q, kv = torch.randn(4, 5, 40).to(dtype), torch.randn(20, 8, 40).to(dtype)
    table = torch.full((4, 9), 10**6, dtype=torch.int32)  # entries beyond a length are garbage
    pages = iter(torch.randperm(19).tolist())
    for row, length in enumerate(lengths):
        for page in range(-(-length // 8)):
            table[row, page] = next(pages)
    counts = torch.tensor(lengths, dtype=torch.int32)
    parts, sums = mla_decode.on(target)(q, kv, table, counts, 0.3, DV=32, BH=4, BN=16, splits=2)
    weight = (sums - sums.logsumexp(1, keepdim=True)).exp().nan_to_num(0)
    found = (parts * weight[..., None]).sum(1)
    for row, length in enumerate(lengths):
        if length == 0:
            assert (found[row] == 0).all()
            continue
        keys = kv[table[row, : -(-length // 8)].long()].reshape(-1, 40)[:length].double()
        expected = (q[row].double() @ keys.T * 0.3).softmax(-1) @ keys[:, :32]
        assert error(found[row], expected) <= (1e-5 if dtype == torch.float32 else 8e-3)
